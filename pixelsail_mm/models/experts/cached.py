"""Expert features that were computed beforehand."""

from __future__ import annotations

import json
import os.path as osp
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from mmengine.logging import MMLogger
from torch import Tensor

from pixelsail_mm.models.experts.base import VisionExpert, has_image
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

INDEX = 'index.json'


@MODELS.register_module()
class CachedExpert(VisionExpert):
    """Read feature maps from one file per image.

    With ``key='img_path'``, ``a/b.jpg`` below ``image_root`` has its features in ``root/a/b.npz``;
    with ``key='sample_id'``, sample ``a/b`` has them there. A file holds the array ``feature``
    ``(C,h,w)``: floating point, or integers with a number ``scale`` to multiply them with (a
    ``.npy`` file has no room for a scale). Nothing is ever unpickled.

    ``root/index.json`` may say how the features were made, for example ``{"expert": ...,
    "weights_sha256": ..., "size": 800}``; ``fingerprint`` in the config then guards against using
    the features of another expert.

    Args:
        root: Folder of the feature files.
        image_root: Folder that image paths are taken relative to; needed for ``key='img_path'``.
        suffix: ``'.npz'``, ``'.npy'`` or ``'.safetensors'``.
        allow_missing: Give None for images without a file and count them in ``missing`` instead
            of raising.
        key: What names the file of a sample: ``'img_path'`` or ``'sample_id'``.
        fingerprint: Entries that ``index.json`` must have; None checks nothing.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: An argument is not one of those above, or ``index.json`` says something else
            than ``fingerprint``.
    """

    def __init__(self, root: str, image_root: str | None = None, suffix: str = '.npz',
                 allow_missing: bool = False, key: str = 'img_path',
                 fingerprint: Mapping[str, Any] | None = None) -> None:
        if suffix not in _READERS:
            raise ValueError(f'distill.expert.suffix={suffix!r}: use one of {list(_READERS)}')
        if key not in ('img_path', 'sample_id'):
            raise ValueError(f"distill.expert.key={key!r}: use 'img_path' or 'sample_id'")
        if key == 'img_path' and image_root is None:
            raise ValueError("distill.expert.image_root is missing: key='img_path' needs the "
                             'folder that image paths are relative to')
        self.root = Path(root)
        self.image_root = image_root
        self.suffix = suffix
        self.allow_missing = allow_missing
        self.key = key
        self.missing: Counter = Counter()
        if not self.root.is_dir():
            raise FileNotFoundError(
                f'distill.expert.root: folder {root} does not exist; write the features first, or '
                'train without them: --cfg-options model.distill="[]"')
        if fingerprint is not None:
            _check_fingerprint(self.root / INDEX, fingerprint)

    def __call__(self, data_samples: Sequence[PixelDataSample]) -> list[Tensor | None]:
        """See :class:`VisionExpert`.

        Raises:
            FileNotFoundError: A file is missing and ``allow_missing`` is off.
            ValueError: A file is damaged or would lie outside ``root``.
        """
        return [self._read(sample) if has_image(sample) else None for sample in data_samples]

    def _file(self, sample: PixelDataSample) -> Path:
        name = sample.get(self.key)
        if name is None:
            raise ValueError(f'distill.expert.key={self.key!r}: sample '
                             f'{sample.get("sample_id")!r} does not have it; use the other key')
        if self.key == 'img_path':
            name = osp.splitext(osp.relpath(name, self.image_root))[0]
        name = osp.normpath(str(name))
        if osp.isabs(name) or name.split(osp.sep)[0] == osp.pardir:
            raise ValueError(f'{sample.get(self.key)}: its features would lie outside of '
                             f'{self.root}; correct distill.expert.image_root')
        return self.root / (name + self.suffix)

    def _read(self, sample: PixelDataSample) -> Tensor | None:
        file = self._file(sample)
        if not file.is_file():
            return self._note_missing(file, sample)
        try:
            return _dequantise(*_READERS[self.suffix](file))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f'{file}: not a usable feature file ({error}); write it again with the array '
                '"feature" of shape (C,h,w), without pickled objects') from error

    def _note_missing(self, file: Path, sample: PixelDataSample) -> None:
        if not self.allow_missing:
            raise FileNotFoundError(
                f'{file}: no expert feature for {self.key} {sample.get(self.key)}; write it, or '
                'set allow_missing=True in distill.expert')
        if not self.missing:
            MMLogger.get_current_instance().warning(
                f'{file}: no expert feature for {self.key} {sample.get(self.key)}; such images '
                'are left out of the distillation loss (reported once)')
        self.missing[str(file)] += 1


def _check_fingerprint(index: Path, expected: Mapping[str, Any]) -> None:
    """Compare the config's fingerprint with what the maker of the features wrote down."""
    try:
        found = json.loads(index.read_text())
    except FileNotFoundError as error:
        raise ValueError(f'{index}: no such file, so distill.expert.fingerprint cannot be checked; '
                         'write the features again, or remove the fingerprint') from error
    except ValueError as error:
        raise ValueError(f'{index}: not valid JSON ({error}); write the features again') from error
    wrong = [f'{key} is {found.get(key)!r} instead of {value!r}' for key, value in expected.items()
             if found.get(key) != value]
    if wrong:
        raise ValueError(f'{index}: features of another expert: {"; ".join(wrong)}; correct '
                         'distill.expert.root or .fingerprint, or write the features again')


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
