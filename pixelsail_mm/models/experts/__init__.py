"""Vision experts whose features supervise ours during training."""

from pixelsail_mm.models.experts.base import VisionExpert
from pixelsail_mm.models.experts.cached import CachedExpert

__all__ = ['CachedExpert', 'VisionExpert']
