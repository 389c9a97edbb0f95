"""Conversion of checkpoints: official names, EVE, GGUF, LoRA merging, folders for others."""
