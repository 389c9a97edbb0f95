"""Heads on ``[SEG]`` states."""

from pixelsail_mm.models.heads.base import SegTokenHead
from pixelsail_mm.models.heads.seg_token_mask_head import SegTokenMaskHead

__all__ = ['SegTokenHead', 'SegTokenMaskHead']
