"""Adapters for what differs between users' machines."""

from pixelsail_mm.compat.mmcv_ext import ensure_mmcv_ops
from pixelsail_mm.compat.optional_packages import postpone_optional_packages

__all__ = ['ensure_mmcv_ops', 'postpone_optional_packages']
