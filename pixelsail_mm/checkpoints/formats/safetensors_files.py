"""Safetensors files: mapped into memory to read, written value by value."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixelsail_mm.checkpoints.formats.checkpoint_files import replace_when_complete
from pixelsail_mm.checkpoints.formats.zero_checkpoint import CHUNK, ZeroTensor
from pixelsail_mm.errors import CheckpointError, ConfigError

#: Header entry: JSON of names that share a stored tensor, alias -> name.
ALIASES = 'aliases'
INDEX_NAME = 'model.safetensors.index.json'
#: Names of the precisions that weights can be written in.
DTYPES = ('float32', 'float16', 'bfloat16')
_NAMES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Map a safetensors file; values are read when they are used.

    Returns:
        Name -> Tensor (aliases share theirs), and the header's text entries.

    Raises:
        CheckpointError: The file is not whole, or its list of aliases is not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            path,
            f'not a readable safetensors file ({error})',
            'copy or download it again; it may be truncated',
        ) from error
    try:
        aliases = {
            alias: state[key] for alias, key in json.loads(metadata.get(ALIASES, '{}')).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            path,
            f'its list of names that share a tensor, the entry {ALIASES!r} '
            f'of the header, is damaged ({type(error).__name__}: {error})',
            'copy or download it again',
        ) from error
    return state | aliases, metadata


def save_weights(
    state: Mapping[str, Tensor | ZeroTensor],
    path: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    tied_once: bool = True,
) -> None:
    """Write one file, atomically, with little memory beside ``state``.

    The library's own ``save_file`` needs every tensor whole, hence a copy of each that lies in
    pieces or changes its precision.

    Args:
        state: Name -> Tensor on any device, or :class:`ZeroTensor`.
        path: File to write.
        metadata: Further text entries for the header; pass
            :func:`~pixelsail_mm.checkpoints.loading.vocabulary.vocabulary_metadata` along, so that
            models with other tokens can use the file.
        dtype: Precision of floating-point weights; None keeps each one's.
        tied_once: Write tied tensors once, with their other names in the header, which only
            :func:`read_safetensors` understands; otherwise under every name.

    Raises:
        CheckpointError: A tensor is of a type that the format, or this function, does not know.
    """
    stored, aliases = _without_aliases(state) if tied_once else (dict(state), {})
    # Wide types first, so that every tensor starts at a multiple of its item size.
    order = sorted(stored, key=lambda name: -_target(stored[name], dtype).itemsize)
    entries: dict = {'__metadata__': {'format': 'pt', **(metadata or {})}}
    if aliases:
        entries['__metadata__'][ALIASES] = json.dumps(aliases)
    end = 0
    for name in order:
        kind = _target(stored[name], dtype)
        if kind not in _NAMES:
            raise CheckpointError(
                path, f'cannot hold {name}, which is {kind}', 'convert that weight first'
            )
        start, end = end, end + stored[name].numel() * kind.itemsize
        entries[name] = dict(
            dtype=_NAMES[kind], shape=list(stored[name].shape), data_offsets=[start, end]
        )
    header = json.dumps(entries, separators=(',', ':')).encode()
    header += b' ' * (-len(header) % 8)
    with replace_when_complete(path) as unfinished, open(unfinished, 'wb') as file:
        file.write(len(header).to_bytes(8, 'little') + header)
        for name in order:
            for chunk in _chunks(stored[name]):
                chunk = chunk.to('cpu', _target(stored[name], dtype)).contiguous()
                file.write(memoryview(chunk.view(torch.uint8).numpy()))


def write_folder(
    state: Mapping[str, Tensor | ZeroTensor],
    folder: str | os.PathLike,
    max_shard_size: str | int,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Write a folder of shards with a list of them, as Hugging Face libraries read it.

    ``huggingface_hub.save_torch_state_dict`` needs every tensor whole and in its final precision,
    and leaves the other names of tied weights, and ``metadata``, out of the shards.

    Args:
        state: As for :func:`save_weights`.
        folder: Existing folder.
        max_shard_size: Largest size of a file, e.g. ``'5GB'``; bytes as a number. A single larger
            tensor gets a file of its own.
        metadata: Further text entries for each header.
        dtype: As for :func:`save_weights`.

    Returns:
        Names of the files with weights.

    Raises:
        ConfigError: ``max_shard_size`` is not a size.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    stored, aliases = _without_aliases(state)
    sizes = {
        name: torch.empty(value.shape, dtype=_target(value, dtype), device='meta')
        for name, value in stored.items()
    }
    try:
        split = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ConfigError(
            f'size of shards {max_shard_size!r}: give a number and a unit, such as 5GB ({error})'
        ) from error
    weight_map = dict(split.tensor_to_filename)
    for shard, names in split.filename_to_tensors.items():
        part = {name: stored[name] for name in names}
        shared = {alias: stored[name] for alias, name in aliases.items() if name in part}
        weight_map.update(dict.fromkeys(shared, shard))
        save_weights(part | shared, Path(folder) / shard, metadata, dtype)
    if split.is_sharded:
        index = dict(metadata=split.metadata, weight_map=weight_map)
        (Path(folder) / INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True))
    return list(split.filename_to_tensors)


def map_once(
    state: Mapping[str, Tensor | ZeroTensor], change: Callable[[Tensor | ZeroTensor], Tensor]
) -> dict[str, Tensor]:
    """Change weights; those that are one under several names are changed once and stay one.

    Args:
        state: Name -> weight.
        change: Gives what stands in a weight's place.
    """
    stored, aliases = _without_aliases(state)
    changed = {key: change(value) for key, value in stored.items()}
    return {key: changed[aliases.get(key, key)] for key in state}


def _without_aliases(
    state: Mapping[str, Tensor | ZeroTensor],
) -> tuple[dict[str, Tensor | ZeroTensor], dict[str, str]]:
    """Each tensor under its first name, and alias -> first name."""
    first: dict = {}
    stored, aliases = {}, {}
    for key, value in state.items():
        identity = _identity(value) if value.numel() else key
        if identity in first:
            aliases[key] = first[identity]
        else:
            first[identity] = key
            stored[key] = value
    return stored, aliases


def _identity(value: Tensor | ZeroTensor) -> Hashable:
    """What weights have in common that are one under several names.

    Args:
        value: A weight that is not empty, and stays alive while identities are compared.
    """
    if isinstance(value, ZeroTensor):
        return id(value)
    # A view can begin where another tensor does, so the address alone names nothing.
    return value.data_ptr(), value.shape, value.stride()


def _target(value: Tensor | ZeroTensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and value.dtype.is_floating_point else value.dtype


def _chunks(value: Tensor | ZeroTensor) -> Iterator[Tensor]:
    if isinstance(value, ZeroTensor):
        return value.chunks()
    return iter(value.detach().reshape(-1).split(CHUNK))
