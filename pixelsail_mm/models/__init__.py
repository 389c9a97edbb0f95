"""Model components; importing this package registers all of them."""

from pixelsail_mm.models import backbones, experts, heads, losses, necks, prompt_injectors
from pixelsail_mm.models.data_preprocessor import PixelDataPreprocessor
from pixelsail_mm.models.pixel_sail import PixelSAIL

__all__ = [
    'PixelDataPreprocessor',
    'PixelSAIL',
    'backbones',
    'experts',
    'heads',
    'losses',
    'necks',
    'prompt_injectors',
]
