"""Public language models as they are found, turned into local bases for training."""

from pixelsail_mm.bases.gguf import gguf_to_hf
from pixelsail_mm.bases.tokenizers import byte_level_tokenizer, qwen_tokenizer

__all__ = ['byte_level_tokenizer', 'gguf_to_hf', 'qwen_tokenizer']
