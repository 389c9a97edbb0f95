"""Reading pickled files with PyTorch's restricted unpickler: weights come out, code never runs."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np
import torch

from pixelsail_mm.errors import CheckpointError

_NUMPY_KINDS = ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')
_REFUSED = re.compile(r'(?im)(unsupported (?:global|class)\b.*?|attribute \S+ of .*? not allowed)'
                      r'(?= was not|\. |$)')
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')


def _history_method(owner: type, name: str):
    """Stand in for ``getattr`` while unpickling: gives HistoryBuffer's statistics, nothing else."""
    from mmengine.logging import HistoryBuffer
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'attribute {name!r} of {owner!r} is not allowed')
    return getattr(HistoryBuffer, name)


def trusted_types() -> list:
    """List what a checkpoint may hold besides tensors and plain Python containers.

    MMEngine keeps its log history as numpy arrays in ``HistoryBuffer`` objects, whose pickle also
    names four of its own methods through ``getattr``. None of them runs anything when rebuilt.

    Returns:
        list: Types, or (object, dotted name) pairs, as ``torch.serialization.safe_globals`` takes.
    """
    from mmengine.logging import HistoryBuffer
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    trusted = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, HistoryBuffer,
               (_history_method, 'builtins.getattr')]
    trusted += [(function, f'numpy.core.multiarray.{function.__name__}')
                for function in (multiarray._reconstruct, multiarray.scalar)]
    trusted += [type(np.dtype(kind)) for kind in _NUMPY_KINDS]
    return trusted


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
    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` overrules that.

    Args:
        deepspeed: Also trust DeepSpeed's own types (imports DeepSpeed).
        more: Further entries for :func:`trusted_types`.
    """
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    trusted = trusted_types() + (_trusted_deepspeed_types() if deepspeed else []) + list(more)
    os.environ[name] = '1'
    try:
        with torch.serialization.safe_globals(trusted):
            yield
    finally:
        if before is None:
            os.environ.pop(name)
        else:
            os.environ[name] = before


def _refusal(error: BaseException) -> str | None:
    """Find in PyTorch's page of advice the type or attribute that was refused."""
    found = _REFUSED.search(str(error))
    return found.group(1) if found else None


def one_line(error: BaseException) -> str:
    """Cut an error's text to the line that says what is wrong.

    Args:
        error: Any error.
    """
    return _refusal(error) or (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_pickle(path: Path, map_location: str = 'cpu', mmap: bool = False,
                more: Sequence[Any] = ()) -> dict:
    """Read a file of ``torch.save`` that holds a dict.

    Args:
        path: The file.
        map_location: Device of the tensors; ``'meta'`` gives shapes and file offsets alone.
        mmap: Map the tensors instead of reading them, where the file's format allows it (PyTorch's
            zip format since 1.6).
        more: Further entries for :func:`trusted_types`.

    Raises:
        CheckpointError: The file is truncated, holds code, or something else than a dict.
    """
    try:
        with weights_only_loading(more=more):
            content = torch.load(path, map_location=map_location,
                                 mmap=mmap and zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        refused = _refusal(error)
        if refused:
            raise CheckpointError(
                path, f'holds more than weights, and loading that could run code ({refused})',
                'ask its author for a .safetensors file, or convert it where you trust it'
            ) from error
        raise CheckpointError(
            path, f'not a readable PyTorch file, probably truncated ({one_line(error)})',
            'copy it again, or resume from an earlier checkpoint (--resume PATH)') from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f'holds a {type(content).__name__}, not a dict of weights',
                              'save dict(state_dict=model.state_dict()) instead')
    return content
