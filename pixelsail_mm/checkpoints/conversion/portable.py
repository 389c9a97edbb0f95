"""Weights and settings of a training that other machines need for prediction."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from pixelsail_mm.checkpoints.checkpoint import TRAINING_ONLY_PREFIXES, open_state
from pixelsail_mm.checkpoints.formats.safetensors_files import DTYPES, map_once
from pixelsail_mm.checkpoints.formats.zero_checkpoint import ZeroTensor
from pixelsail_mm.checkpoints.loading.vocabulary import Vocabulary, stored_vocabulary
from pixelsail_mm.errors import CheckpointError, ConfigError, first_line
from pixelsail_mm.type_names import name_types, parts_of, type_name

# Parts of a model's config that do nothing for prediction.
_TRAINING_KEYS = ('distill', 'init_cfg', 'lora', 'quantization', 'new_token_rows')
# Parts of names that LoRA layers, separately trained rows and 4-bit layers have.
_UNMERGED = ('.lora_', '.base_layer.', '.new_rows', '.quant_state', '.absmax')
# Parts of a visualizer's config that say where a training writes pictures.
_OF_A_TRAINING = ('name', 'save_dir', 'vis_backends')
# Generation as the meta-architecture does it, whatever a base prefers.
_GREEDY = dict(max_new_tokens=512, do_sample=False)
# Settings of a base that are not ours, and those that only sampling uses.
_OF_THE_BASE = (
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
    'transformers_version',
    'max_length',
    'use_cache',
    'output_attentions',
    'output_hidden_states',
)
_SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff', 'eta_cutoff')


def check_exportable(cfg: Config, dtype: str | None) -> None:
    """Check that a model of a config can be exported, in a precision.

    Raises:
        ConfigError: The config lacks ``model`` or ``test_pipeline``, or ``dtype`` is unknown.
    """
    for key in ('model', 'test_pipeline'):
        if cfg.get(key) is None:
            raise ConfigError(
                f'{cfg.filename or "the config"} has no `{key}`, which an exported '
                'model needs; give the config it was trained with'
            )
    if dtype not in (None, *DTYPES):
        raise ConfigError(f'dtype {dtype!r}: use one of {DTYPES}')


def prediction_weights(
    checkpoint: str | os.PathLike, dtype: str | None
) -> tuple[dict[str, Tensor], Vocabulary | None]:
    """Read the weights that prediction uses, in the wanted precision; tied ones stay tied.

    Those that keep their precision stay mapped to their file where it can be mapped.

    Args:
        checkpoint: Anything :func:`~pixelsail_mm.checkpoints.checkpoint.load_state` reads.
        dtype: One of :data:`DTYPES`; None keeps what the checkpoint has.

    Returns:
        The weights, and the tokens they were trained with (None where that is not known).

    Raises:
        CheckpointError: The checkpoint cannot be read, or holds LoRA layers.
    """
    content = open_state(checkpoint)
    state = content['state_dict']
    separate = next((key for key in state if any(mark in key for mark in _UNMERGED)), None)
    if separate is not None:
        raise CheckpointError(
            checkpoint,
            f'holds LoRA or 4-bit layers of a training ({separate})',
            'merge them first: tools/model_converters/merge_lora.py',
        )

    def convert(value: Tensor | ZeroTensor) -> Tensor:
        whole = value.read() if isinstance(value, ZeroTensor) else value
        changes = dtype is not None and whole.is_floating_point()
        return whole.to(getattr(torch, dtype)) if changes else whole

    used = {
        key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY_PREFIXES)
    }
    vocabulary = stored_vocabulary(Path(checkpoint).expanduser(), content.get('meta'))
    return map_once(used, convert), vocabulary


def portable_model(cfg: Config) -> dict[str, Any]:
    """``model`` of a config for prediction anywhere, except for the path of its tokenizer.

    The language model becomes its architecture, with the settings that its base generates with;
    what only training uses is left out.

    Raises:
        ConfigError: The config of the language model cannot be read.
    """
    model = cfg.model.to_dict()
    for part in parts_of(model):
        for key in _TRAINING_KEYS:
            part.pop(key, None)
    name_types(model)
    llm, base = model['backbone'].get('llm'), {}
    if isinstance(llm, str):
        model['backbone']['llm'], base = _describe(llm)
    generation = base | _GREEDY | model.get('generation', {})
    model['generation'] = {
        key: value
        for key, value in generation.items()
        if generation['do_sample'] or key not in _SAMPLING
    }
    return model


def _describe(llm: str) -> tuple[dict, dict]:
    """Architecture of a pre-trained language model, and the settings it generates with."""
    from transformers import AutoConfig, GenerationConfig

    try:
        architecture = AutoConfig.from_pretrained(llm).to_diff_dict()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'model.backbone.llm {llm!r}: its config.json cannot be read '
            f'({first_line(error)}); give the folder of the base'
        ) from error
    try:
        settings = GenerationConfig.from_pretrained(llm).to_diff_dict()
    except OSError:
        settings = {}
    return architecture, {
        key: value
        for key, value in settings.items()
        if key not in _OF_THE_BASE and not key.startswith('_')
    }


def portable_imports(cfg: Config) -> list[str]:
    """Modules that ``custom_imports`` of a config names."""
    named = (cfg.get('custom_imports') or {}).get('imports') or []
    return [named] if isinstance(named, str) else list(named)


def beyond_json(cfg: Config, pipelines: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Collect the settings that ``config.json`` has no place for, for ``config.py``.

    These are modules to import, a visualizer of answers and an ``inference_pipeline``. A tokenizer
    in them is that of the folder they are written into.

    Args:
        cfg: Config the model was trained with.
        pipelines: What
            :func:`~pixelsail_mm.checkpoints.conversion.training_record.recorded_pipelines` gives.

    Returns:
        Key -> value; empty for most models.
    """
    content = {}
    if portable_imports(cfg):
        content['custom_imports'] = cfg.custom_imports.to_dict()
    if 'inference_pipeline' in pipelines:
        content['inference_pipeline'] = pipelines['inference_pipeline']
    visualizer = cfg.get('visualizer') or {}
    if type_name(visualizer.get('type')) not in (None, 'Visualizer'):
        content['visualizer'] = {
            key: value for key, value in visualizer.to_dict().items() if key not in _OF_A_TRAINING
        }
    content = deepcopy(content)
    for part in parts_of(content):
        if 'tokenizer' in part:
            part['tokenizer'] = '.'
    return content
