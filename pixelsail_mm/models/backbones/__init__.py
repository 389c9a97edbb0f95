"""Backbones: the single transformer and what makes a stock decoder read images."""

from pixelsail_mm.models.backbones.attention import AttentionLayout, image_block_attention
from pixelsail_mm.models.backbones.eve_transformer import EVETransformer
from pixelsail_mm.models.backbones.rotary import PatchRotaryEmbedding
from pixelsail_mm.models.backbones.single_transformer import SingleTransformer

__all__ = [
    'AttentionLayout',
    'EVETransformer',
    'PatchRotaryEmbedding',
    'SingleTransformer',
    'image_block_attention',
]
