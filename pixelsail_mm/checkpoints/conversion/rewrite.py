"""Rewrite checkpoint files: under other names, as one file, in shards, in another precision."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelsail_mm.checkpoints.checkpoint import load_state, open_state
from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    check_replaceable,
    replace_when_complete,
)
from pixelsail_mm.checkpoints.formats.safetensors_files import (
    DTYPES,
    INDEX_NAME,
    save_weights,
    write_folder,
)
from pixelsail_mm.checkpoints.formats.zero_checkpoint import (
    ZeroTensor,
    is_zero_folder,
    read_zero_folder,
)
from pixelsail_mm.checkpoints.loading.vocabulary import stored_vocabulary
from pixelsail_mm.errors import CheckpointError, ConfigError


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> str:
    """Convert ``source`` to ``target``, bit for bit.

    The target appears only when it is complete; an existing file stays until then. What the source
    says about its tokens is kept in a safetensors target.

    Args:
        source: Anything :func:`~pixelsail_mm.checkpoints.checkpoint.load_state` reads.
        target: ``.safetensors``, or ``.pth`` for a pickled ``dict(state_dict=...)``.
        rename: State dict -> state dict.

    Returns:
        Table of weights and values per module.

    Raises:
        CheckpointError: The source is missing, truncated or holds code.
        UnknownKeysError: A weight belongs to neither side.
        ConfigError: Unknown suffix of the target.
    """
    target = Path(target)
    if target.suffix not in ('.safetensors', '.pth'):
        raise ConfigError(f'{target}: the suffix must be .safetensors or .pth')
    content = open_state(source) if target.suffix == '.safetensors' else load_state(source)
    renamed = rename(content['state_dict'])
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == '.safetensors':
        # Other programs read the file by name: tied embeddings are written under both.
        save_weights(renamed, target, _about_tokens(source, content.get('meta')), tied_once=False)
    else:
        with replace_when_complete(target) as unfinished:
            torch.save(dict(state_dict=renamed), unfinished)
    return summary(renamed)


def _about_tokens(source: str | os.PathLike, metadata: Any) -> dict[str, str]:
    """Header entry with the tokens of a checkpoint, empty where they are unknown.

    Args:
        source: File or folder of weights.
        metadata: See :func:`~pixelsail_mm.checkpoints.loading.vocabulary.stored_vocabulary`.
    """
    vocabulary = stored_vocabulary(Path(source).expanduser(), metadata)
    return {} if vocabulary is None else vocabulary.metadata()


def zero_to_safetensors(
    folder: str | os.PathLike,
    target: str | os.PathLike,
    dtype: str | None = None,
    max_shard_size: str | None = None,
) -> str:
    """Put the parts of a DeepSpeed checkpoint together, a few megabytes at a time.

    Which tokens it was trained with is recorded where a tokenizer lies beside it, as in the work
    directory of a training.

    Args:
        folder: DeepSpeed checkpoint folder of ZeRO stage 1, 2 or 3.
        target: A ``.safetensors`` file; with ``max_shard_size`` a folder for shards and their
            index. It appears when it is complete.
        dtype: Precision to write: float32, float16 or bfloat16; None keeps float32 for what was
            trained and the stored precision for the rest.
        max_shard_size: Largest size of a file, e.g. ``'5GB'``.

    Returns:
        Table of weights and values per module.

    Raises:
        CheckpointError: ``folder`` is not a whole DeepSpeed checkpoint.
        ConfigError: Unknown ``dtype``, the target does not fit ``max_shard_size``, or is a folder
            with other things in it.
    """
    folder, target = Path(folder).expanduser(), Path(target)
    if dtype not in (None, *DTYPES):
        raise ConfigError(f'dtype {dtype!r}: use one of {DTYPES}')
    if (target.suffix == '.safetensors') == (max_shard_size is not None):
        raise ConfigError(
            f'{target}: give a .safetensors file, or a folder and a maximum size of shards'
        )
    if not folder.is_dir() or not is_zero_folder(folder):
        raise CheckpointError(
            folder,
            'not a DeepSpeed checkpoint folder',
            'give the folder that holds *_model_states.pt',
        )
    if max_shard_size is not None:
        check_replaceable(target, ('model*.safetensors', INDEX_NAME))
    weights, metadata = read_zero_folder(folder), _about_tokens(folder, {})
    kind = dtype and getattr(torch, dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    if max_shard_size is None:
        save_weights(weights, target, metadata, kind)
    else:
        with replace_when_complete(target) as unfinished:
            Path(unfinished).mkdir()
            write_folder(weights, unfinished, max_shard_size, metadata, kind)
    return summary(weights)


def summary(state: Mapping[str, Tensor | ZeroTensor]) -> str:
    """Weights and values per module, one line each."""
    weights, values = Counter(), Counter()
    for name, tensor in state.items():
        module = name.split('.', 1)[0]
        weights[module] += 1
        values[module] += tensor.numel()
    rows = [
        f'{module:32}{weights[module]:6} weights {values[module]:14,} values'
        for module in sorted(weights)
    ]
    return '\n'.join(
        [*rows, f'{"total":32}{sum(weights.values()):6} weights {sum(values.values()):14,} values']
    )
