"""A decoder in miniature: the family, the features and the values of a config, at a tiny size."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

#: Window, and length for which rotary frequencies hold, of the miniature.
WINDOW = 16
VOCABULARY = 48
_HIDDEN, _HEADS, _HEAD_DIM = 64, 4, 16
_EXPERTS = 4

#: Sizes that the config of every rotary decoder names so.
SIZE_NAMES = ('hidden_size', 'num_hidden_layers', 'num_attention_heads')
# Names of the same size differ by family; a config takes those it has.
_SIZES = dict(
    hidden_size=_HIDDEN,
    vocab_size=VOCABULARY,
    intermediate_size=48,
    intermediate_size_mlp=48,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    shared_intermediate_size=16,
    expert_ffn_hidden_size=16,
    ffn_hidden_size=48,
    num_local_experts=_EXPERTS,
    num_experts=_EXPERTS,
    n_routed_experts=_EXPERTS,
    moe_num_experts=_EXPERTS,
    num_experts_per_tok=2,
    moe_k=2,
    moe_topk=2,
    n_group=2,
    topk_group=1,
    num_layers=2,
    zero_expert_num=2,
    vocab_size_per_layer_input=VOCABULARY,
    hidden_size_per_layer_input=8,
    first_k_dense_replace=1,
    moe_layer_start_index=1,
    moe_layer_interval=1,
    n_shared_experts=1,
    moe_num_shared_experts=1,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    qk_head_dim=24,
    v_head_dim=16,
    mamba_n_heads=8,
    mamba_d_head=16,
    mamba_d_ssm=128,
    mamba_d_state=8,
    mamba_n_groups=1,
    mamba_chunk_size=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    block_size=8,
    index_topk=4,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
# Values at which it shows in a few numbers of ordinary size when one of them is dropped.
_VALUES = dict(
    attn_logit_softcapping=2.0,
    final_logit_softcapping=2.0,
    logits_scaling=3.0,
    logit_scale=0.3,
    embedding_multiplier=3.0,
    residual_multiplier=0.6,
    attention_multiplier=0.4,
    query_pre_attn_scalar=5,
    rope_theta=100.0,
    rope_local_base_freq=30.0,
    sliding_window=WINDOW,
    attention_chunk_size=WINDOW,
    original_max_position_embeddings=WINDOW,
)


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


def tiny_model(
    kind: type[nn.Module], config: PretrainedConfig, attention: str, seed: int = 0
) -> nn.Module:
    """A decoder on the CPU, in float32 and eval mode, whose every weight is random.

    Norms and biases too: one that is dropped must show. The global random state is left alone by
    what is drawn here; building the modules takes from it (see
    :func:`~pixelsail_mm.models.backbones.family_check.check_family`).

    Args:
        kind: Class of the decoder.
        config: Not changed.
        attention: Name of the attention implementation.
        seed: Of the weights; models of one config and seed are equal.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    model = kind(config)
    generator = torch.Generator().manual_seed(seed)
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
