"""Using a model from Python: :func:`init_model` and :class:`PixelSAILInferencer`."""

from pixelsail_mm.apis.inferencer import PixelSAILInferencer
from pixelsail_mm.apis.init_model import init_model

__all__ = ['PixelSAILInferencer', 'init_model']
