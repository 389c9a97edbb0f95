"""Checks of the data that a config names, before a training that takes days."""

from pixelsail_mm.datasets.checks.config_check import check_config
from pixelsail_mm.datasets.checks.report import Fault, Report

__all__ = ['Fault', 'Report', 'check_config']
