"""Necks: from patch states to feature maps."""

from pixelsail_mm.models.necks.learnable_upsampler import BilinearUpsampler, LearnableUpsampler

__all__ = ['BilinearUpsampler', 'LearnableUpsampler']
