"""A template of a project: one head."""

from .area_head import AreaHead

__all__ = ['AreaHead']
