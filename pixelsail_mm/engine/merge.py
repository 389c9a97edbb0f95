"""From a checkpoint trained with LoRA to a plain one, or to an adapter for PEFT."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from pixelsail_mm.engine.checkpoint import load_weights, open_state, save_weights
from pixelsail_mm.engine.checkpoint_files import replace_when_complete
from pixelsail_mm.engine.vocabulary import vocabulary_metadata
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.registry import MODELS, SCOPE

_ADAPTER_MARK = '.lora_'
_LLM = 'backbone.llm.'


def merge_lora(cfg: Config, checkpoint: str | os.PathLike, target: str | os.PathLike) -> int:
    """Add LoRA layers and rows of new tokens to the weights; write a plain checkpoint.

    It fits the same config without ``model.backbone.lora`` and ``model.backbone.quantization``.
    4-bit weights become floating point before anything is added to them, so the plain model
    computes what the trained one did. What only training uses (``distill.``) is left out.

    Args:
        cfg: Config the checkpoint was trained with; its base must be there.
        checkpoint: Anything :func:`~pixelsail_mm.engine.checkpoint.load_state` reads.
        target: ``.safetensors`` file to write.

    Returns:
        Number of weights written.

    Raises:
        ConfigError: The config has no LoRA, or ``target`` another suffix.
        CheckpointError: The checkpoint is unreadable, holds no LoRA weights, does not fit the
            config, or sums to numbers that are not finite.
    """
    target = Path(target)
    if target.suffix != '.safetensors':
        raise ConfigError(f'{target}: the merged checkpoint is a .safetensors file')
    model = _trained_model(cfg, checkpoint)
    if cfg.model.backbone.get('quantization'):
        model = _in_floating_point(model, cfg)
    try:
        model.backbone.merge()
    except ValueError as error:
        raise CheckpointError(checkpoint, f'cannot be merged ({error})',
                              'training diverged; use an earlier checkpoint') from error
    state = model.state_dict()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(state, target, vocabulary_metadata(model.tokenizer))
    return len(state)


def export_adapter(cfg: Config, checkpoint: str | os.PathLike,
                   folder: str | os.PathLike) -> int:
    """Write what LoRA training changed in the decoder as a folder that PEFT loads.

    ``PeftModel.from_pretrained(decoder, folder)`` puts it into a decoder whose embedding has a row
    for every token of ours. The parts around the decoder are not in it: PEFT has no place for them.

    Args:
        cfg: Config the checkpoint was trained with.
        checkpoint: Anything :func:`~pixelsail_mm.engine.checkpoint.load_state` reads.
        folder: Folder to write; an existing one is replaced when the new one is complete.

    Returns:
        Number of weights written.

    Raises:
        ConfigError: The config has no LoRA.
        CheckpointError: As in :func:`merge_lora`.
    """
    llm = _trained_model(cfg, checkpoint).backbone.llm
    config = deepcopy(llm.peft_config['default'])
    config.base_model_name_or_path = llm.config.name_or_path or None
    config.inference_mode = True
    state = _adapter_weights(llm)
    embedding = llm.get_input_embeddings()
    if hasattr(embedding, 'new_rows'):
        tables = dict(embed_tokens=embedding, lm_head=llm.get_output_embeddings())
        if llm.config.tie_word_embeddings:
            del tables['lm_head']  # PEFT ties its rows by itself
        config.trainable_token_indices = {
            name: table.new_ids.tolist() for name, table in tables.items()}
    with replace_when_complete(folder) as unfinished:
        os.makedirs(unfinished)
        config.save_pretrained(unfinished)
        save_weights(state, Path(unfinished) / 'adapter_model.safetensors')
    return len(state)


def _adapter_weights(llm: nn.Module) -> dict[str, Tensor]:
    """Adapters and new rows under the names of PEFT's files."""
    names = {}
    for key in llm.state_dict():
        if _ADAPTER_MARK in key:
            names[key] = key.replace('.default', '')
        elif key.endswith('.new_rows') and not (
                key.startswith('lm_head.') and llm.config.tie_word_embeddings):
            names[key] = key.replace('.new_rows', '.token_adapter.trainable_tokens_delta')
    state = llm.state_dict()
    return {f'base_model.model.{name}': state[key] for key, name in names.items()}


def _trained_model(cfg: Config, checkpoint: str | os.PathLike) -> nn.Module:
    """The config's model with the checkpoint's weights, all of which must be there."""
    if not (cfg.get('model') and cfg.model.get('backbone', {}).get('lora')):
        raise ConfigError(f'{cfg.filename or "the config"} has no model.backbone.lora; give the '
                          'config the checkpoint was trained with')
    init_default_scope(cfg.get('default_scope', SCOPE))
    if not any(_ADAPTER_MARK in key for key in open_state(checkpoint)['state_dict']):
        raise CheckpointError(checkpoint, 'holds no LoRA weights',
                              'it was trained without LoRA or is merged already: use it as it is, '
                              'with a config without model.backbone.lora')
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
    decoder = {f'{_LLM}{key}': value
               for key, value in dequantised_state(model.backbone.llm).items()}
    others = {key: value for key, value in model.state_dict().items() if not key.startswith(_LLM)}
    plain = _build(cfg, dict(quantization=None))
    plain.load_state_dict(decoder | others)
    return plain
