"""Mask heads."""

from pixelsail_mm.models.heads.seg_token_mask_head import SegTokenMaskHead

__all__ = ['SegTokenMaskHead']
