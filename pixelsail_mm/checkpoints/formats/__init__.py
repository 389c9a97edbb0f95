"""File formats of weights: safetensors, restricted pickles, DeepSpeed ZeRO folders."""
