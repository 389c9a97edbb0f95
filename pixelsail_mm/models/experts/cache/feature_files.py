"""Feature maps in one file per image."""

from __future__ import annotations

import os.path as osp
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.structures import PixelDataSample

# What numpy and zipfile raise for damaged files; a wrong byte may claim an encrypted zip or one of
# a later version (RuntimeError, NotImplementedError) or break the header of an array (TokenError).
_DAMAGE = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError,
           TokenError)


class FileStore:
    """Read ``root/<name><suffix>``, which holds the array ``feature`` and perhaps ``scale``.

    Args:
        root: Folder of the files.
        suffix: One of :data:`SUFFIXES`.
    """

    def __init__(self, root: Path, suffix: str) -> None:
        self.root = root
        self.suffix = suffix

    def name_of(self, image: str) -> str:
        """Name under which an image's features are kept: without the suffix."""
        return osp.splitext(image)[0]

    def place(self, name: str) -> str:
        """Where the features of a name are looked for, for messages."""
        return f'{self.root / name}{self.suffix}'

    def is_current(self, file: Path, sample: PixelDataSample) -> bool:
        """Whether the features belong to the image as it is now, which files cannot tell."""
        return True

    def find(self, name: str) -> Path | None:
        """File of a name; None if there is none.

        Raises:
            ConfigError: It would lie outside of ``root``.
        """
        name = osp.normpath(name)
        if osp.isabs(name) or name.split(osp.sep)[0] == osp.pardir:
            raise ConfigError(f'{name}: its features would lie outside of {self.root}; correct the '
                              'sample ids')
        file = Path(self.place(name))
        return file if file.is_file() else None

    def read(self, file: Path) -> Tensor:
        """Map ``(C,h,w)`` float32 of a file.

        Raises:
            ConfigError: The file is damaged.
        """
        try:
            return _dequantise(*_READERS[self.suffix](file))
        except _DAMAGE as error:
            raise ConfigError(
                f'{file}: not a usable feature file ({error}); write it again with the array '
                '"feature" of shape (C,h,w), without pickled objects') from error


def _read_npz(file: Path) -> tuple[Tensor, float | None]:
    with np.load(file, allow_pickle=False) as content:
        scale = content['scale'].item() if 'scale' in content.files else None
        return torch.from_numpy(content['feature']), scale


def _read_npy(file: Path) -> tuple[Tensor, None]:
    return torch.from_numpy(np.load(file, allow_pickle=False)), None


def _read_safetensors(file: Path) -> tuple[Tensor, float | None]:
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(file, framework='pt') as content:
            scale = content.get_tensor('scale').item() if 'scale' in content.keys() else None
            return content.get_tensor('feature'), scale
    except SafetensorError as error:
        raise ValueError(str(error)) from error


_READERS = {'.npz': _read_npz, '.npy': _read_npy, '.safetensors': _read_safetensors}
SUFFIXES = tuple(_READERS)


def _dequantise(feature: Tensor, scale: float | None) -> Tensor:
    """Float32 map; refuses what can only be a mistake."""
    if feature.ndim != 3:
        raise ValueError(f'"feature" has shape {tuple(feature.shape)}')
    if scale is None and not feature.is_floating_point():
        raise ValueError(f'"feature" is {feature.dtype} and there is no "scale"')
    feature = feature.float() if scale is None else feature.float() * scale
    if not feature.isfinite().all():
        raise ValueError('"feature" holds NaN or infinity')
    return feature
