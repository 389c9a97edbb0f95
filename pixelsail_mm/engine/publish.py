"""Turn a trained model into a folder that ``init_model`` opens anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from pixelsail_mm.engine.checkpoint import load_state, save_weights
from pixelsail_mm.engine.checkpoint_files import replace_when_complete
from pixelsail_mm.engine.errors import ConfigError
from pixelsail_mm.registry import SCOPE
from pixelsail_mm.tokenization import build_tokenizer

#: Names of the precisions weights can be published in.
DTYPES = ('float32', 'float16', 'bfloat16')
_TOKENIZER = 'tokenizer'
# Projections onto the experts, which training checkpoints hold and prediction never uses.
_TRAINING_PREFIX = 'distill.'


def publish_model(cfg: Config, checkpoint: str | os.PathLike, folder: str | os.PathLike,
                  dtype: str | None = None) -> Path:
    """Write ``config.py``, ``model.safetensors`` and ``tokenizer/`` into one folder.

    The config keeps the model (architecture instead of a path to a language model) and the test
    pipeline, and names the tokenizer relative to itself. An existing folder stays as it is until
    the new one is complete; then it is replaced as a whole.

    Args:
        cfg: Config the model was trained with.
        checkpoint: Anything :func:`~pixelsail_mm.engine.checkpoint.load_state` reads.
        folder: Folder to write.
        dtype: One of :data:`DTYPES`; None keeps what the checkpoint has.

    Returns:
        The folder.

    Raises:
        ConfigError: The config lacks ``model`` or ``test_pipeline``, or ``dtype`` is unknown.
        CheckpointError: The checkpoint cannot be read.
    """
    for key in ('model', 'test_pipeline'):
        if cfg.get(key) is None:
            raise ConfigError(f'{cfg.filename or "the config"} has no `{key}`, which a published '
                              'model needs; give the config it was trained with')
    if dtype not in (None, *DTYPES):
        raise ConfigError(f'dtype {dtype!r}: use one of {DTYPES}')
    state = load_state(checkpoint)['state_dict']
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(target) as unfinished:
        Path(unfinished).mkdir()
        build_tokenizer(cfg.model.tokenizer).save_pretrained(f'{unfinished}/{_TOKENIZER}')
        _portable_config(cfg).dump(f'{unfinished}/config.py')
        save_weights(_published(state, dtype), f'{unfinished}/model.safetensors')
    return target


def _published(state: dict[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """Weights that prediction uses, in the wanted precision; tied ones stay tied."""
    converted: dict[tuple, Tensor] = {}
    result = {}
    for key, value in state.items():
        if key.startswith(_TRAINING_PREFIX):
            continue
        if dtype is not None and value.is_floating_point():
            # A view can begin where another tensor does, so the address alone names nothing.
            identity = (value.data_ptr(), value.shape, value.stride())
            value = converted.setdefault(identity, value.to(getattr(torch, dtype)))
        result[key] = value
    return result


def _portable_config(cfg: Config) -> Config:
    """Model and test pipeline without a path of this machine."""
    model = cfg.model.to_dict()
    model.pop('distill', None)
    llm = model['backbone']['llm']
    if isinstance(llm, str):
        from transformers import AutoConfig
        model['backbone']['llm'] = AutoConfig.from_pretrained(llm).to_diff_dict()
    content = dict(default_scope=cfg.get('default_scope', SCOPE), model=model,
                   test_pipeline=[stage.to_dict() for stage in cfg.test_pipeline])
    return Config(_with_tokenizer(content))


def _with_tokenizer(node: Any) -> Any:
    """Copy in which every ``tokenizer`` is the one in the folder."""
    if isinstance(node, dict):
        return {key: _TOKENIZER if key == 'tokenizer' else _with_tokenizer(value)
                for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_with_tokenizer(item) for item in node]
    return node
