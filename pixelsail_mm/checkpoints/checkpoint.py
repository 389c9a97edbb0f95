"""Reading and writing weights without ever running code from a file.

Every read of a checkpoint in the package goes through this module: ``.safetensors`` files,
``.pth`` files of MMEngine (with ``weights_only=True`` and the short list of types in
:func:`trusted_types`), folders of shards, and DeepSpeed checkpoint folders. Weights are mapped or
read piece by piece into the model's own memory, never held twice.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelsail_mm.checkpoints.formats.safe_pickle import (
    loading_fault,
    read_pickle,
    trusted_types,
    weights_only_loading,
)
from pixelsail_mm.checkpoints.formats.safetensors_files import (
    map_once,
    read_safetensors,
    save_weights,
)
from pixelsail_mm.checkpoints.formats.zero_checkpoint import (
    ZeroTensor,
    is_zero_folder,
    read_zero_folder,
)
from pixelsail_mm.checkpoints.loading.apply_weights import TRAINING_ONLY_PREFIXES, apply_weights
from pixelsail_mm.checkpoints.loading.load_report import LoadReport
from pixelsail_mm.checkpoints.loading.vocabulary import stored_vocabulary
from pixelsail_mm.errors import CheckpointError, shortened

__all__ = [
    'TRAINING_ONLY_PREFIXES',
    'LoadReport',
    'apply_weights',
    'load_state',
    'load_weights',
    'loading_fault',
    'open_state',
    'save_weights',
    'trusted_types',
    'weights_only_loading',
]

_NUMBERED_SHARD = re.compile(r'(.+)-\d+-of-(\d+)(\..+)')


def open_state(path: str | os.PathLike, mmap: bool = True) -> dict[str, Any]:
    """Open a checkpoint; values are read when they are used, code in it never runs.

    Args:
        path: As for :func:`load_state`.
        mmap: Map ``.pth`` files instead of reading them. Do not overwrite the file in place while
            its tensors are in use.

    Returns:
        As :func:`load_state`, with a
        :class:`~pixelsail_mm.checkpoints.formats.zero_checkpoint.ZeroTensor` for every weight that
        lies in pieces.

    Raises:
        CheckpointError: See :func:`load_state`.
    """
    path = Path(path).expanduser()
    content = (_open_folder if path.is_dir() else _open_file)(path, mmap)
    if any(key.startswith('model.backbone.') for key in content['state_dict']):
        # Written for Hugging Face, where the architecture is a part of the model.
        content['state_dict'] = {
            key.removeprefix('model.'): value for key, value in content['state_dict'].items()
        }
    return content


def _open_file(path: Path, mmap: bool) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(path, 'no such file', 'check the path')
    if path.suffix == '.safetensors':
        state, metadata = read_safetensors(path)
        return dict(state_dict=state, meta=metadata)
    content = read_pickle(path, mmap=mmap)
    content = content if 'state_dict' in content else dict(state_dict=content)
    _check_weights(path, content['state_dict'])
    return content


def _check_weights(path: Path, state: Any) -> None:
    """Refuse a pickle of something else, such as weights under another key than ``state_dict``."""
    remedy = 'save dict(state_dict=model.state_dict()) instead'
    if not isinstance(state, dict):
        raise CheckpointError(path, f'its state_dict is a {type(state).__name__}', remedy)
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise CheckpointError(
                path,
                f'{key!r} in it is a {type(value).__name__}, where names '
                'of weights with their tensors are expected',
                remedy,
            )
        kind = _unusable_kind(value)
        if kind:
            raise CheckpointError(
                path, f'{key} is a {kind} tensor, which no weight of a model is', remedy
            )


def _unusable_kind(value: Tensor) -> str:
    """What keeps a tensor from being copied into a weight unchanged; empty if nothing does."""
    kinds = dict(
        sparse=value.layout != torch.strided,
        quantized=value.is_quantized,
        complex=value.is_complex(),
        meta=value.is_meta,
    )
    return next((name for name, applies in kinds.items() if applies), '')


def _open_folder(path: Path, mmap: bool) -> dict[str, Any]:
    if is_zero_folder(path):
        return dict(state_dict=read_zero_folder(path))
    for suffix, pattern in (('.safetensors', '*.safetensors'), ('.bin', 'pytorch_model*.bin')):
        shards = _shards(path, suffix, pattern)
        if shards:
            break
    else:
        inside = sorted(
            str(folder) for folder in path.iterdir() if folder.is_dir() and is_zero_folder(folder)
        )
        raise CheckpointError(
            path,
            'a folder with neither DeepSpeed nor safetensors nor pytorch_model*.bin files in it',
            f'pass {shortened(inside, 3) or "a .pth or .safetensors file"}',
        )
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        opened = _open_file(shard, mmap)
        twice = sorted(state.keys() & opened['state_dict'].keys())
        if twice:
            raise CheckpointError(
                path,
                f'{twice[0]} is in {shard.name} and in another file of the folder',
                'pass the one file that is meant',
            )
        state.update(opened['state_dict'])
        if suffix == '.safetensors':
            metadata.update(opened['meta'])
    return dict(state_dict=state, meta=metadata)


def _shards(folder: Path, suffix: str, pattern: str) -> list[Path]:
    """Files of a folder of weights: those its index lists, or all of one kind."""
    present = sorted(folder.glob(pattern))
    listed = {name for index in folder.glob(f'*{suffix}.index.json') for name in _listed(index)}
    remedy = 'copy or download the missing files'
    absent = listed - {file.name for file in present}
    if absent:
        raise CheckpointError(
            folder, f'its index lists {", ".join(sorted(absent))}, which are not there', remedy
        )
    if listed:
        return [file for file in present if file.name in listed]
    series = Counter(
        found.groups() for file in present if (found := _NUMBERED_SHARD.fullmatch(file.name))
    )
    for (stem, total, _), count in series.items():
        if count != int(total):
            raise CheckpointError(
                folder, f'{count} of the files {stem}-*-of-{total} are there', remedy
            )
    return present


def _listed(index: Path) -> set[str]:
    try:
        names = set(json.loads(index.read_text())['weight_map'].values())
        if not all(isinstance(name, str) for name in names):
            raise TypeError('a name that is no text')
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            index, f'not a readable list of shards ({error})', 'copy or download it again'
        ) from error


def load_state(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint; code in it never runs.

    Args:
        path: A ``.safetensors`` file, a ``.pth``/``.pt``/``.bin`` file, a DeepSpeed checkpoint
            folder (its trained weights come in float32), or a folder of safetensors or
            ``pytorch_model*.bin`` shards.

    Returns:
        dict: Always has ``state_dict`` (name -> Tensor, tied ones share theirs); a training
        checkpoint also has ``meta``, ``optimizer``, ``param_schedulers`` and ``message_hub``.

    Raises:
        CheckpointError: A file is missing, truncated, or holds anything but weights and the
            types of :func:`trusted_types`.
    """
    content = open_state(path, mmap=False)
    content['state_dict'] = map_once(
        content['state_dict'],
        lambda value: value.read() if isinstance(value, ZeroTensor) else value,
    )
    return content


def load_weights(
    model: nn.Module, path: str | os.PathLike, required_prefixes: Sequence[str] | None = None
) -> LoadReport:
    """Load a checkpoint's weights into a model and say what was loaded, missed and skipped.

    A key whose tensor is tied to one that the file holds counts as loaded; tensors of equal size
    but other shape (a patch embedding kept as convolution, say) are reshaped; rows of tokens that
    the model knows under another id are moved, see
    :mod:`pixelsail_mm.checkpoints.loading.vocabulary`.

    Args:
        model: The model, not wrapped.
        path: Anything :func:`load_state` reads.
        required_prefixes: Key prefixes that must be complete. None: every key but the modules that
            only training uses (``distill.``); an empty list: nothing is required, but what fits
            neither the model's decoder nor its vocabulary is still refused.

    Returns:
        LoadReport: The fate of every key.

    Raises:
        CheckpointError: The file cannot be read, a required key is missing or of other size, or the
            architecture is another. The model is unchanged then.
    """
    content = open_state(path)
    vocabulary = stored_vocabulary(Path(path).expanduser(), content.get('meta'))
    return apply_weights(
        model,
        content['state_dict'],
        str(path),
        required_prefixes,
        vocabulary=vocabulary,
        by_token=True,
    )
