"""Reading pickled files with PyTorch's restricted unpickler: weights come out, code never runs."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelsail_mm.errors import CheckpointError, first_line

# Numbers only: an array of objects can be made of bytes, which NumPy takes for addresses.
_NUMPY_KINDS = (
    'bool',
    'int8',
    'int16',
    'int32',
    'int64',
    'uint8',
    'uint16',
    'uint32',
    'uint64',
    'float16',
    'float32',
    'float64',
)
_DTYPES = {np.dtype(kind).str[1:]: np.dtype(kind) for kind in _NUMPY_KINDS}
# What a file gets for numpy.ndarray. It may fill an array, but not call the type.
_ARRAY = 'an array'
# No name in a pickle can hold a line break.
_UNREACHABLE = '{}\n'
_REFUSED = re.compile(
    r'(?im)(unsupported (?:global|class)\b.*?|can only build .*|'
    r'(?:attribute|array) .*? not allowed|trying to (?:call|create) .*)'
    r'(?= was not|\. |$)'
)
_FORCE, _FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')


def _history_method(owner: type, name: str):
    """Stand in for ``getattr`` while unpickling: gives HistoryBuffer's statistics, nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'attribute {name!r} of {owner!r} is not allowed')
    return getattr(HistoryBuffer, name)


def _empty_array(kind: Any, *args) -> np.ndarray:
    """Stand in for NumPy's ``_reconstruct``: an empty array, which the file fills."""
    if kind != _ARRAY:
        raise pickle.UnpicklingError(f'array type {kind!r} is not allowed')
    return np.ndarray(0, np.int8)


def _dtype_of_numbers(name: Any, *args) -> np.dtype:
    """Stand in for ``numpy.dtype``: NumPy's own objects for numbers, which nothing can change."""
    if name not in _DTYPES:
        raise pickle.UnpicklingError(f'array of {name!r} is not allowed')
    return _DTYPES[name]


def trusted_types() -> list:
    """List what a checkpoint may hold besides tensors and plain Python containers.

    MMEngine keeps its log history as numpy arrays in ``HistoryBuffer`` objects, whose pickle also
    names four of its own methods through ``getattr``. None of them runs anything when rebuilt. Of
    NumPy a file gets arrays and scalars of numbers: PyTorch lets a file call whatever it can name,
    and ``numpy.ndarray`` would make objects of any bytes, ``numpy.dtype`` the types for it.

    Returns:
        list: Types, or (object, dotted name) pairs, as ``torch.serialization.safe_globals`` takes.
    """
    from mmengine.logging import HistoryBuffer

    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    # Pickles before protocol 3 make empty bytes, which an empty array has, by calling the type.
    trusted = [
        bytes,
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        (_ARRAY, 'numpy.ndarray'),
        (_dtype_of_numbers, 'numpy.dtype'),
    ]
    for core in ('numpy.core', 'numpy._core'):
        trusted += [
            (_empty_array, f'{core}.multiarray._reconstruct'),
            (multiarray.scalar, f'{core}.multiarray.scalar'),
        ]
    return trusted + [
        (kind, _UNREACHABLE.format(kind.__name__))
        for kind in (np.ndarray, *map(type, _DTYPES.values()))
    ]


def _trusted_deepspeed_types() -> list:
    """ZeRO stages 1 and 2 keep their loss scaler and an enum; resuming wants the real ones."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


@contextlib.contextmanager
def weights_only_loading(deepspeed: bool = False, more: Sequence[Any] = ()) -> Iterator[None]:
    """Force ``weights_only=True`` on every ``torch.load`` inside, also in other libraries' code.

    DeepSpeed asks for ``weights_only=False`` explicitly; PyTorch's
    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` overrules that. Its opposite, which many set for the sake of
    other libraries, does not count inside: PyTorch refuses every file when it finds both.

    Args:
        deepspeed: Also trust DeepSpeed's own types (imports DeepSpeed).
        more: Further entries for :func:`trusted_types`.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    trusted = trusted_types() + (_trusted_deepspeed_types() if deepspeed else []) + list(more)
    os.environ[_FORCE] = '1'
    try:
        with torch.serialization.safe_globals(trusted):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _refusal(error: BaseException) -> str | None:
    """Find in PyTorch's page of advice the type or attribute that was refused."""
    found = _REFUSED.search(str(error))
    return found.group(1) if found else None


def loading_fault(error: BaseException) -> str:
    """Give the reason in one line why a file was not loaded; for a refused type, its name."""
    return _refusal(error) or first_line(error)


def can_be_mapped(path: Path) -> bool:
    """Tell whether a file can be mapped into memory.

    They do in PyTorch's zip format since 1.6, which does not compress. A file packed again by
    another program may be compressed; PyTorch unpacks that when it reads it, but maps the packed
    bytes as if they were values.

    Args:
        path: A file of ``torch.save``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except zipfile.BadZipFile:
        return False


def read_pickle(
    path: Path, map_location: str = 'cpu', mmap: bool = False, more: Sequence[Any] = ()
) -> dict:
    """Read a file of ``torch.save`` that holds a dict.

    Args:
        path: The file.
        map_location: Device of the tensors; ``'meta'`` gives shapes and file offsets alone.
        mmap: Map the tensors instead of reading them, where :func:`can_be_mapped` allows it.
        more: Further entries for :func:`trusted_types`.

    Raises:
        CheckpointError: The file is truncated, holds code, or something else than a dict.
    """
    try:
        with weights_only_loading(more=more):
            content = torch.load(path, map_location=map_location, mmap=mmap and can_be_mapped(path))
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        refused = _refusal(error)
        if refused:
            raise CheckpointError(
                path,
                f'holds more than weights, and loading that could run code ({refused})',
                'ask its author for a .safetensors file, or convert it where you trust it',
            ) from error
        raise CheckpointError(
            path,
            f'not a readable PyTorch file, probably truncated ({loading_fault(error)})',
            'copy it again, or resume from an earlier checkpoint (--resume PATH)',
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            path,
            f'holds a {type(content).__name__}, not a dict of weights',
            'save dict(state_dict=model.state_dict()) instead',
        )
    return content
