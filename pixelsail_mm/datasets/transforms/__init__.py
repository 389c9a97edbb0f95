"""Transforms from a canonical record to model inputs, shared by training and inference."""

from pixelsail_mm.datasets.transforms.conversation import BuildConversation
from pixelsail_mm.datasets.transforms.formatting import PackPixelInputs
from pixelsail_mm.datasets.transforms.grid import (
    ResizeToGrid,
    area_size,
    mask_to_patches,
    target_size,
)
from pixelsail_mm.datasets.transforms.loading import (
    LoadIgnoreMasks,
    LoadImage,
    LoadMasks,
    LoadVisualPrompts,
)
from pixelsail_mm.datasets.transforms.prompts import PromptTypeAugment

__all__ = [
    'BuildConversation',
    'LoadIgnoreMasks',
    'LoadImage',
    'LoadMasks',
    'LoadVisualPrompts',
    'PackPixelInputs',
    'PromptTypeAugment',
    'ResizeToGrid',
    'area_size',
    'mask_to_patches',
    'target_size',
]
