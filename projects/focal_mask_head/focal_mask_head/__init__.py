"""A mask head with focal loss, outside the package."""

from .focal_mask_head import FocalMaskHead

__all__ = ['FocalMaskHead']
