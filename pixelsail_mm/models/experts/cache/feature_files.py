"""Feature maps in one file per image."""

from __future__ import annotations

import os
import os.path as osp
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pixelsail_mm.errors import ConfigError

SUFFIXES = ('.npz', '.npy', '.safetensors')
# What the libraries raise for damaged files; a wrong byte may claim an encrypted zip or one of a
# later version (RuntimeError, NotImplementedError) or break the header of an array (TokenError).
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    TokenError,
    SafetensorError,
)


class FileStore:
    """Read ``root/<name><suffix>``, which holds the array ``feature`` and perhaps ``scale``.

    Args:
        root: Folder of the files.
        suffix: One of :data:`SUFFIXES`.
    """

    def __init__(self, root: Path, suffix: str) -> None:
        self.root = root
        self.suffix = suffix

    def place(self, name: str) -> str:
        """File of a name."""
        return f'{self.root / name}{self.suffix}'

    def is_current(self, name: str, image: str | os.PathLike) -> bool | None:
        """Whether there are features; None if not. Files cannot tell if the image changed since.

        Raises:
            ConfigError: They would lie outside of ``root``.
        """
        inside = osp.normpath(name)
        if osp.isabs(inside) or inside.split(osp.sep)[0] == osp.pardir:
            raise ConfigError(
                f'{name}: its features would lie outside of {self.root}; correct the sample ids'
            )
        return osp.isfile(self.place(name)) or None

    def read(self, name: str) -> Tensor:
        """Map ``(C,h,w)`` float32 of a name.

        Raises:
            ConfigError: The file is damaged.
        """
        file = Path(self.place(name))
        try:
            content = _arrays(file)
            scale = content['scale'].item() if 'scale' in content else None
            return _dequantise(content['feature'], scale)
        except _DAMAGE as error:
            raise ConfigError(
                f'{file}: not a usable feature file ({error}); write it again with the array '
                '"feature" of shape (C,h,w), without pickled objects'
            ) from error


def _arrays(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == '.safetensors':
        return load_file(file)
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return dict(feature=torch.from_numpy(content))
    with content:
        return {
            key: torch.from_numpy(content[key])
            for key in content.files
            if key in ('feature', 'scale')
        }


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
