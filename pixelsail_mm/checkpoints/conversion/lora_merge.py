"""From a checkpoint with LoRA or separate new rows to a plain one, or to an adapter for PEFT."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from pixelsail_mm.checkpoints.checkpoint import load_weights, open_state, save_weights
from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    check_replaceable,
    replace_when_complete,
)
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.registry import MODELS, SCOPE
from pixelsail_mm.type_names import type_name

# Parts of names that a plain decoder does not have.
_UNMERGED = ('.lora_', '.new_rows')
_LLM = 'backbone.llm.'
_ADAPTER_FILES = ('adapter_config.json', 'adapter_model.safetensors', 'README.md')


def merge_lora(cfg: Config, checkpoint: str | os.PathLike, target: str | os.PathLike) -> int:
    """Add LoRA layers and rows of new tokens to the weights; write a plain checkpoint.

    It fits the same config without ``lora``, ``quantization`` and ``new_token_rows`` in
    ``model.backbone``.
    4-bit weights become floating point before anything is added to them, so the plain model
    computes what the trained one did. What only training uses (``distill.``) is left out.

    Args:
        cfg: Config the checkpoint was trained with; its base must be there.
        checkpoint: Anything :func:`~pixelsail_mm.checkpoints.checkpoint.load_state` reads.
        target: ``.safetensors`` file to write.

    Returns:
        Number of weights written.

    Raises:
        ConfigError: The config has neither LoRA nor new rows, or ``target`` another suffix.
        CheckpointError: The checkpoint is unreadable, holds nothing to merge, does not fit the
            config, or sums to numbers that are not finite.
    """
    target = Path(target)
    if target.suffix != '.safetensors':
        raise ConfigError(f'{target}: the merged checkpoint is a .safetensors file')
    _require(cfg, 'lora', 'new_token_rows')
    model = _trained_model(cfg, checkpoint)
    if cfg.model.backbone.get('quantization'):
        model = _in_floating_point(model, cfg)
    try:
        model.backbone.merge()
    except ValueError as error:
        raise CheckpointError(
            checkpoint,
            f'cannot be merged ({error})',
            'training diverged; use an earlier checkpoint',
        ) from error
    state = model.state_dict()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(state, target, vocabulary_metadata(model.tokenizer))
    return len(state)


def export_adapter(cfg: Config, checkpoint: str | os.PathLike, folder: str | os.PathLike) -> int:
    """Write what LoRA training changed in the decoder as a folder that PEFT loads.

    ``PeftModel.from_pretrained(decoder, folder)`` puts it into a decoder whose embedding has a row
    for every token of ours. The parts around the decoder are not in it: PEFT has no place for them.

    Args:
        cfg: Config the checkpoint was trained with.
        checkpoint: Anything :func:`~pixelsail_mm.checkpoints.checkpoint.load_state` reads.
        folder: Folder to write; an existing one is replaced when the new one is complete.

    Returns:
        Number of weights written.

    Raises:
        ConfigError: The config has no LoRA, or a decoder with visual weights; or the folder has
            other things in it.
        CheckpointError: As in :func:`merge_lora`.
    """
    from peft import get_peft_model_state_dict

    _require(cfg, 'lora')
    check_replaceable(folder, _ADAPTER_FILES)
    if type_name(cfg.model.backbone.type) == 'EVETransformer':
        raise ConfigError(
            'EVETransformer has visual weights, which no stock decoder has, so that '
            'PEFT has no place for their adapters; merge instead'
        )
    llm = _trained_model(cfg, checkpoint).backbone.llm
    config = deepcopy(llm.peft_config['default'])
    config.base_model_name_or_path = llm.config.name_or_path or None
    config.inference_mode = True
    state = {
        f'base_model.model.{name}': value
        for name, value in get_peft_model_state_dict(llm, save_embedding_layers=False).items()
    }
    tables = {'model.embed_tokens': llm.get_input_embeddings()}
    if not llm.config.tie_word_embeddings:  # PEFT ties its rows by itself
        tables['lm_head'] = llm.get_output_embeddings()
    if hasattr(llm.get_input_embeddings(), 'new_rows'):
        config.trainable_token_indices = {
            name.rpartition('.')[2]: table.new_ids.tolist() for name, table in tables.items()
        }
        state |= {
            f'base_model.model.{name}.token_adapter.trainable_tokens_delta': table.new_rows
            for name, table in tables.items()
        }
    with replace_when_complete(folder) as unfinished:
        os.makedirs(unfinished)
        config.save_pretrained(unfinished)
        save_weights(state, Path(unfinished) / 'adapter_model.safetensors')
    return len(state)


def _require(cfg: Config, *keys: str) -> None:
    """Refuse a config whose backbone has none of these settings."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if not any(backbone.get(key) for key in keys):
        names = ' or '.join(f'model.backbone.{key}' for key in keys)
        raise ConfigError(
            f'{cfg.filename or "the config"} has no {names}; give the config the '
            'checkpoint was trained with'
        )


def _trained_model(cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
    """The config's model with the checkpoint's weights, all of which must be there."""
    init_default_scope(cfg.get('default_scope', SCOPE))
    if not any(mark in key for key in open_state(checkpoint)['state_dict'] for mark in _UNMERGED):
        raise CheckpointError(
            checkpoint,
            'holds no LoRA weights and no separate rows',
            'it was trained without them or is merged already: use it as it is, '
            'with a config without model.backbone.lora',
        )
    model = _build(cfg, {})
    load_weights(model, checkpoint)
    return model


def _build(cfg: Config, backbone: dict) -> nn.Module:
    """The config's model without experts, with changed settings of the backbone."""
    settings = cfg.model.to_dict()
    settings['backbone'].update(backbone)
    return MODELS.build(settings | dict(distill=[])).eval()


def _in_floating_point(model: nn.Module, cfg: Config) -> nn.Module:
    """The same model with the values of its 4-bit weights in floating point."""
    from pixelsail_mm.models.backbones.lora import dequantised_state

    decoder = {
        f'{_LLM}{key}': value for key, value in dequantised_state(model.backbone.llm).items()
    }
    others = {key: value for key, value in model.state_dict().items() if not key.startswith(_LLM)}
    plain = _build(cfg, dict(quantization=None))
    plain.load_state_dict(decoder | others)
    return plain
