"""Metrics of pixel-level tasks; see :mod:`pixelsail_mm.evaluation.metrics`."""

from pixelsail_mm.evaluation.metrics import *  # noqa: F403
from pixelsail_mm.evaluation.metrics import __all__  # noqa: F401
