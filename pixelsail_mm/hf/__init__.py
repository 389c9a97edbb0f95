"""Pixel-SAIL for Hugging Face Transformers; importing it registers the Auto classes.

``AutoConfig``, ``AutoModelForCausalLM``, ``AutoModelForImageTextToText``, ``AutoImageProcessor``
and ``AutoProcessor`` then open the folders that ``tools/model_converters/export_hf.py`` writes,
without ``trust_remote_code``.
"""

from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from pixelsail_mm.checkpoints.folders.configuration import PixelSAILConfig
from pixelsail_mm.hf.modeling import PixelSAILForCausalLM, PixelSAILGenerateOutput
from pixelsail_mm.hf.processing import PixelSAILImageProcessor, PixelSAILProcessor

AutoModelForCausalLM.register(PixelSAILConfig, PixelSAILForCausalLM)
AutoModelForImageTextToText.register(PixelSAILConfig, PixelSAILForCausalLM)
AutoImageProcessor.register(PixelSAILConfig, slow_image_processor_class=PixelSAILImageProcessor)
AutoProcessor.register(PixelSAILConfig, PixelSAILProcessor)

__all__ = [
    'PixelSAILConfig',
    'PixelSAILForCausalLM',
    'PixelSAILGenerateOutput',
    'PixelSAILImageProcessor',
    'PixelSAILProcessor',
]
