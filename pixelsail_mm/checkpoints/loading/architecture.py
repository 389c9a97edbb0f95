"""Find a model's architecture from the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_LAYER = re.compile(r'(?:^|\.)layers\.(\d+)\.(.+)')
_WIDTHS = {
    'self_attn.q_proj.weight': 'query width',
    'self_attn.k_proj.weight': 'key/value width',
    'mlp.gate_proj.weight': 'MLP width',
}


def describe(shapes: Mapping[str, Sequence[int]]) -> dict[str, str | int]:
    """Describe the architecture of a decoder from its weights.

    Args:
        shapes: Name -> shape, under our names, the authors' or Hugging Face's.

    Returns:
        ``family``, ``hidden size``, ``layers``, ...; as much as the names tell, nothing if they are
        of no decoder.
    """
    layers = [
        (int(found[1]), found[2].replace('.base_layer.', '.'), shape)
        for key, shape in shapes.items()
        if shape and (found := _LAYER.search(key))
    ]
    parts = {part: shape for _, part, shape in layers}
    if 'self_attn.o_proj.weight' not in parts:
        return {}
    described: dict[str, str | int] = {
        'family': _family(parts),
        'hidden size': parts['self_attn.o_proj.weight'][0],
        'layers': 1 + max(number for number, _, _ in layers),
    }
    for part, name in _WIDTHS.items():
        if part in parts:
            described[name] = parts[part][0]
    return described


def _family(parts: Mapping[str, Sequence[int]]) -> str:
    """The family whose layers have these weights (as named by transformers)."""
    if 'self_attn.qkv_proj.weight' in parts:
        return 'Phi-3'
    if 'self_attn.q_norm.weight' in parts:
        return 'Qwen3'
    if 'self_attn.q_proj.bias' in parts:
        return 'Qwen2'
    return 'Llama or Mistral'


def unlike_sizes(stored: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]]) -> str:
    """Compare two architectures; weights of 4-bit models have no comparable widths.

    Returns:
        Both, side by side where they differ; empty if they do not, as far as their names tell.
    """
    theirs, ours = describe(stored), describe(own)
    unlike = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    if not unlike:
        return ''

    def text(described):
        return ', '.join(f'{name} {described[name]}' for name in unlike)

    return f'the checkpoint has {text(theirs)}; the model has {text(ours)}'
