"""Adapters for what differs between users' machines."""

from pixelsail_mm.compat.mmcv_ext import ensure_mmcv_ops

__all__ = ['ensure_mmcv_ops']
