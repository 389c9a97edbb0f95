"""A decoder in miniature: the family, the features and the values of a config, at a tiny size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PretrainedConfig

# Sizes, and values of scales and windows; a config takes those it has.
_TABLE = yaml.safe_load(Path(__file__).with_suffix('.yml').read_text(encoding='utf-8'))
_SIZES, _VALUES = _TABLE['sizes'], _TABLE['values']
#: Window, and length for which rotary frequencies hold, of the miniature.
WINDOW: int = _VALUES['sliding_window']
VOCABULARY: int = _SIZES['vocab_size']
#: Sizes that the config of every rotary decoder names so.
SIZE_NAMES = ('hidden_size', 'num_hidden_layers', 'num_attention_heads')
_HEADS, _HEAD_DIM = 4, 16


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """Copy of a decoder's config at a tiny size.

    What is switched on or off stays: kind of rotary scaling, grouped or single key/value heads,
    partial rotation, biases, tied head, ... Layers are one of each kind that the config lists.
    Scales, caps and windows that are set get values at which it shows when they are dropped.

    Args:
        config: Not changed.
    """
    settings = config.to_dict()
    for key in (
        'quantization_config',
        'dtype',
        'torch_dtype',
        '_name_or_path',
        'architectures',
        'transformers_version',
        'model_type',
    ):
        settings.pop(key, None)
    _shrink_heads(settings)
    _shrink_layers(settings)
    settings.update(
        {key: value for key, value in (_SIZES | _VALUES).items() if settings.get(key) is not None}
    )
    _shrink_rotary(settings)
    tiny = type(config)(**settings)
    tiny._name_or_path = config._name_or_path
    return tiny


def _shrink_heads(settings: dict[str, Any]) -> None:
    heads, shared = settings.get('num_attention_heads'), settings.get('num_key_value_heads')
    if settings.get('head_dim') is not None:
        plain = settings['head_dim'] * heads == settings.get('hidden_size')
        settings['head_dim'] = _HEAD_DIM if plain else 2 * _HEAD_DIM
    if settings.get('qk_rope_head_dim') is not None:  # latent attention: what is rotated
        settings['head_dim'] = _SIZES['qk_rope_head_dim']
    if shared is not None:
        settings['num_key_value_heads'] = {heads: _HEADS, 1: 1}.get(shared, _HEADS // 2)
    settings['num_attention_heads'] = _HEADS


def _shrink_layers(settings: dict[str, Any]) -> None:
    """Keep the first layer of each kind, at least two; lists of all layers follow."""
    count = settings.get('num_hidden_layers')
    lists = {
        key: value
        for key, value in settings.items()
        if isinstance(value, (list, tuple)) and len(value) == count
    }
    kinds = [tuple(map(str, kind)) for kind in zip(*lists.values())] or [()] * count
    kept = sorted({kind: layer for layer, kind in reversed(list(enumerate(kinds)))}.values())
    kept += [0] * (2 - len(kept))
    if settings.get('num_kv_shared_layers'):  # the last ones, with the keys of earlier ones
        settings['num_kv_shared_layers'] = len(kept)
        kept = 2 * kept
    settings.update({key: [value[layer] for layer in kept] for key, value in lists.items()})
    settings['num_hidden_layers'] = len(kept)


def _shrink_rotary(settings: dict[str, Any]) -> None:
    # Transformers 5 has always one, `rope_parameters`, with base and rotated share inside.
    name = 'rope_scaling' if settings.get('rope_scaling') else 'rope_parameters'
    scaling = copy.deepcopy(settings.get(name))
    if not scaling or any(isinstance(value, dict) for value in scaling.values()):
        return
    settings[name] = scaling
    if 'rope_theta' in scaling:
        scaling['rope_theta'] = _VALUES['rope_theta']
    if scaling.get('rope_type') == 'default':
        return
    kind = scaling.get('rope_type', scaling.get('type'))
    old, factor = settings.get('max_position_embeddings'), scaling.get('factor')
    trained = scaling.get(
        'original_max_position_embeddings', settings.get('original_max_position_embeddings')
    )
    if 'original_max_position_embeddings' in scaling:
        scaling['original_max_position_embeddings'] = WINDOW
    ratio = factor or (old / trained if old and trained else 1.0)
    dynamic = kind == 'dynamic' or not trained
    settings['max_position_embeddings'] = WINDOW if dynamic else int(WINDOW * max(ratio, 1))
    size = int(settings.get('head_dim') or _HEAD_DIM)
    share = settings.get('partial_rotary_factor') or scaling.get('partial_rotary_factor')
    size = int(size * (share or 1.0)) // 2
    for key, step in (('short_factor', 0.1), ('long_factor', 0.5)):
        if key in scaling:
            scaling[key] = [1 + step * i for i in range(size)]


def tiny_model(kind: type[nn.Module], config: PretrainedConfig, attention: str) -> nn.Module:
    """A decoder on the CPU, in float32 and eval mode, whose every weight is random.

    Norms and biases too: one that is dropped must show. Models of one config are equal. The global
    random state is left alone by what is drawn here; building the modules takes from it (see
    :func:`~pixelsail_mm.models.backbones.family_check.check_family`).

    Args:
        kind: Class of the decoder.
        config: Not changed.
        attention: Name of the attention implementation.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    model = kind(config)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, value in module._parameters.items():
            # `init_empty_weights` of accelerate puts every new parameter on the meta device.
            if value is not None and value.is_meta:
                module._parameters[name] = nn.Parameter(torch.empty_like(value, device='cpu'))
    if config.tie_word_embeddings:  # it breaks ties, too, and `tie_weights` would go through it
        model.get_output_embeddings()._parameters['weight'] = model.get_input_embeddings().weight
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(0, 2 * value.shape[-1] ** -0.5, generator=generator)
            else:
                value.normal_(0.5, 0.2, generator=generator)
    return model.eval()
