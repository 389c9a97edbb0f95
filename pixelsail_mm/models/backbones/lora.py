"""LoRA and 4-bit weights in a decoder, through PEFT and bitsandbytes, in XTuner's config style."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.new_tokens import fold_new_rows
from pixelsail_mm.type_names import type_name

_ADAPTER = 'default'
_BASE_LAYER = '.base_layer.'
_JSON_ENTRY, _JSON_BYTES = 'quant_state.bitsandbytes', 512
_COPIES = (
    'embedding and head of the new tokens train anyway (backbone.new_token_rows), and a '
    'tied model would forget a copy on merging'
)
_REFUSED = dict(
    modules_to_save=_COPIES,
    trainable_token_indices=_COPIES,
    lora_bias='layers without a bias could not be merged',
    layer_replication='it makes another architecture, which no checkpoint fits',
    inference_mode='it freezes the adapters',
)
# Other ways (PiSSA, OLoRA, ...) change the base's weights before a checkpoint replaces them.
_STARTS = (True, False, 'gaussian', 'orthogonal')


def _settings(cfg: Mapping[str, Any] | Any, name: str, key: str) -> dict | None:
    """Keywords of a config such as ``dict(type='LoraConfig', r=64)``; None for a finished object.

    ``type`` may be the class's name, its dotted path or the class, as XTuner's configs have it.
    """
    if not isinstance(cfg, Mapping):
        if type(cfg).__name__ == name:
            return None
        raise ConfigError(f'{key}={cfg!r}: use dict(type={name!r}, ...)')
    settings = dict(cfg)
    kind = settings.pop('type', name)
    if type_name(kind) != name:
        raise ConfigError(f'{key}.type={kind!r}: only {name!r} is supported')
    return settings


def _create(factory: Callable, settings: dict, key: str):
    try:
        return factory(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f'{key}: {error}; see the arguments of {factory.__name__}') from error


def lora_config(cfg: Mapping[str, Any] | Any):
    """PEFT's ``LoraConfig`` of a config.

    Args:
        cfg: ``dict(type='LoraConfig', r=64, lora_alpha=16, ...)`` or a ``LoraConfig``. Without
            ``target_modules`` all linear layers but the output head are adapted.

    Raises:
        ConfigError: Another type, an unknown key, or one of the settings that do not work here.
    """
    from peft import LoraConfig

    settings = _settings(cfg, 'LoraConfig', 'backbone.lora')
    config = (
        cfg
        if settings is None
        else _create(
            LoraConfig,
            {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in settings.items()},
            'backbone.lora',
        )
    )
    for name, reason in _REFUSED.items():
        if getattr(config, name, None):
            raise ConfigError(f'backbone.lora.{name} is not supported: {reason}; remove the key')
    if config.init_lora_weights not in _STARTS:
        raise ConfigError(
            f'backbone.lora.init_lora_weights={config.init_lora_weights!r} is not '
            f'supported: use one of {_STARTS}'
        )
    if config.target_modules is None:
        config.target_modules = 'all-linear'
    return config


def add_lora(llm: nn.Module, cfg: Mapping[str, Any] | Any) -> None:
    """Freeze a decoder and put trainable LoRA layers into it.

    The layers go into the decoder itself (PEFT's ``inject_adapter_in_model``): no wrapper stands
    between ``llm.model``, ``llm.lm_head`` and their users.

    Args:
        llm: The decoder, changed in place.
        cfg: See :func:`lora_config`.

    Raises:
        ConfigError: See :func:`lora_config`; or a value that PEFT refuses; or ``target_modules``
            names nothing in the decoder, or embedding or head.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype

    config = lora_config(cfg)
    try:
        inject_adapter_in_model(config, llm, _ADAPTER)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f'backbone.lora: {error}') from error
    for name, table in (
        ('embed_tokens', llm.get_input_embeddings()),
        ('lm_head', llm.get_output_embeddings()),
    ):
        if isinstance(table, BaseTunerLayer):
            raise ConfigError(
                f'backbone.lora.target_modules matches {name}: adapters there break '
                'tied weights; the rows of new tokens train by themselves'
            )
    cast_adapter_dtype(llm, _ADAPTER, autocast_adapter_dtype=True)


def merge_adapters(llm: nn.Module) -> None:
    """Add LoRA layers to the weights they adapt, and new rows to their tables; remove both.

    Args:
        llm: A decoder in floating point, changed in place; a quantised one would round the sum.

    Raises:
        ValueError: The sum is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(llm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition('.')
            setattr(llm.get_submodule(parent), child, module.get_base_layer())
    vars(llm).pop('peft_config', None)  # a decoder with nothing but new rows has none
    fold_new_rows(llm)


def quantization_config(cfg: Mapping[str, Any] | Any, dtype: torch.dtype):
    """Transformers' ``BitsAndBytesConfig`` for 4-bit weights.

    Args:
        cfg: ``dict(type='BitsAndBytesConfig', load_in_4bit=True, ...)`` or a finished object.
            Data types may be names, with or without ``'torch.'``.
        dtype: What 4-bit layers compute in unless ``bnb_4bit_compute_dtype`` says otherwise.

    Raises:
        ConfigError: Unknown keys, or not 4-bit.
    """
    from transformers import BitsAndBytesConfig

    key = 'backbone.quantization'
    settings = _settings(cfg, 'BitsAndBytesConfig', key)
    if settings is None:
        config = cfg
    else:
        settings = {
            k: v.removeprefix('torch.') if isinstance(v, str) else v for k, v in settings.items()
        }
        settings.setdefault('bnb_4bit_compute_dtype', dtype)
        config = _create(BitsAndBytesConfig, settings, key)
        unknown = set(settings) - set(config.to_dict())
        if unknown:
            raise ConfigError(f'{key}: BitsAndBytesConfig has no {sorted(unknown)}')
    if not config.load_in_4bit:
        raise ConfigError(f'{key}: only load_in_4bit=True is supported (QLoRA)')
    return config


def quantised(llm: nn.Module, config) -> nn.Module:
    """A decoder with random weights, quantised as one from a folder is."""
    with tempfile.TemporaryDirectory() as folder:
        llm.save_pretrained(folder)
        return type(llm).from_pretrained(
            folder,
            quantization_config=config,
            dtype=llm.dtype,
            attn_implementation=llm.config._attn_implementation,
        )


def prepare_quantised_state(llm: nn.Module) -> None:
    """Make saving and loading of 4-bit layers exact, on every CPU.

    Their statistics are no parameters. bitsandbytes writes them into the state dict and leaves
    reading to transformers, which does it only when a base is loaded; here ``load_state_dict``
    reads them.

    On a CPU with ``avx512_bf16`` the layers would pack their weights at the first answer: scales
    rounded to bfloat16, which neither saving nor further training undoes, and float32 computed in
    bfloat16. So they never pack.

    Args:
        llm: The decoder; one without 4-bit layers is left alone.
    """
    for module in _four_bit_layers(llm).values():
        module.support_avx512bf16_for_cpu = False
        module.register_state_dict_pre_hook(_refuse_packed)
        module.register_state_dict_post_hook(_pad_statistics)
        module.register_load_state_dict_pre_hook(_restore_statistics)


def _padded(key: str, value: Tensor) -> Tensor:
    """Bytes of JSON filled up with spaces: two models' entries then have one shape."""
    if _JSON_ENTRY not in key or len(value) >= _JSON_BYTES:
        return value
    return torch.cat([value, value.new_full((_JSON_BYTES - len(value),), ord(' '))])


def _refuse_packed(module, prefix, keep_vars) -> None:
    """Saving would unpack them, with loss and without a word."""
    if getattr(module.weight.quant_state, 'packing_format_for_cpu', False):
        raise RuntimeError(
            f'{prefix}weight: bitsandbytes packed these 4-bit weights for this CPU, '
            'which rounded them; build the model and load its checkpoint again'
        )


def _pad_statistics(module, state, prefix, metadata) -> None:
    for key in [key for key in state if key.startswith(f'{prefix}weight.')]:
        state[key] = _padded(key, state[key])


def _restore_statistics(module, state, prefix, *args) -> None:
    from bitsandbytes.functional import QuantState

    start = f'{prefix}weight.'
    statistics = {
        key.removeprefix(start): state.pop(key) for key in list(state) if key.startswith(start)
    }
    if statistics:
        module.weight.quant_state = QuantState.from_dict(statistics, module.weight.device)
        module.quant_state = module.weight.quant_state


def _four_bit_layers(llm: nn.Module) -> dict[str, nn.Module]:
    if not getattr(llm, 'is_loaded_in_4bit', False):
        return {}
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in llm.named_modules() if isinstance(module, Linear4bit)}


def adapt_state(llm: nn.Module, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Fit weights of a plain decoder to one with LoRA, 4-bit layers or separate new rows.

    So a checkpoint of full training starts a LoRA training. Weights that fit already stay.

    Args:
        llm: The decoder.
        state: Weights of a whole model: tensors, or what is read from files when it is indexed.
        prefix: What the decoder's keys begin with in ``state``, with the last dot.

    Returns:
        The weights under the decoder's names; 4-bit layers quantised, new rows cut out, DoRA's
        magnitudes added.
    """
    state = dict(state)
    for name in llm.state_dict():
        plain = prefix + name.replace(_BASE_LAYER, '.')
        if _BASE_LAYER in name and plain in state:
            state[prefix + name] = state.pop(plain)
    for name, module in llm.named_modules():
        magnitude = f'{prefix}{name}.lora_magnitude_vector.{_ADAPTER}.weight'
        weight = state.get(f'{prefix}{name}{_BASE_LAYER}weight')
        if weight is not None and _ADAPTER in getattr(module, 'lora_magnitude_vector', {}):
            # DoRA trains the length of each row, which PEFT took from the weights before these.
            state.setdefault(magnitude, weight[:].float().norm(dim=1))
    for name, module in _four_bit_layers(llm).items():
        weight = state.get(f'{prefix}{name}.weight')
        if weight is not None and weight.shape == (module.out_features, module.in_features):
            state.update(
                {
                    f'{prefix}{name}.{key}': value
                    for key, value in _quantise(weight[:], module.weight).items()
                }
            )
    for name, module in llm.named_modules():
        table, rows = f'{prefix}{name}.weight', f'{prefix}{name}.new_rows'
        if hasattr(module, 'new_rows') and table in state and rows not in state:
            ids = module.new_ids[module.new_ids < len(state[table])].cpu()
            known = state[table][ids].to(module.new_rows)
            state[rows] = torch.cat([known, module.new_rows.detach()[len(ids) :]])
    return state


def _quantise(weight: Tensor, like) -> dict[str, Tensor]:
    """Entries of a 4-bit layer's state dict for a weight in floating point."""
    from bitsandbytes.functional import quantize_4bit

    packed, statistics = quantize_4bit(
        weight.to(like.device),
        blocksize=like.blocksize,
        quant_type=like.quant_type,
        compress_statistics=like.compress_statistics,
        quant_storage=like.quant_storage,
    )
    entries = {
        f'weight.{key}': _padded(key, value)
        for key, value in statistics.as_dict(packed=True).items()
    }
    return dict(weight=packed, **entries)


def dequantised_state(llm: nn.Module) -> dict[str, Tensor]:
    """State dict of a decoder with its 4-bit layers in floating point.

    Args:
        llm: The decoder; one without 4-bit layers gives its plain state dict.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = llm.state_dict()
    for name, module in _four_bit_layers(llm).items():
        start = f'{name}.weight'
        state = {key: value for key, value in state.items() if not key.startswith(f'{start}.')}
        state[start] = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return state
