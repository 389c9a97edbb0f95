"""Vision experts whose features supervise ours during training."""

from pixelsail_mm.models.experts.base import VisionExpert
from pixelsail_mm.models.experts.cache.cached import CachedExpert
from pixelsail_mm.models.experts.onnx_expert import OnnxExpert
from pixelsail_mm.models.experts.radio_expert import RADIOExpert
from pixelsail_mm.models.experts.transformers_expert import Mask2FormerExpert, SAM2Expert

__all__ = [
    'CachedExpert',
    'Mask2FormerExpert',
    'OnnxExpert',
    'RADIOExpert',
    'SAM2Expert',
    'VisionExpert',
]
