"""Expert features that were computed beforehand."""

from __future__ import annotations

import os.path as osp
import zipfile
from collections import Counter
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from pixelsail_mm.models.experts.base import VisionExpert
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample


@MODELS.register_module()
class CachedExpert(VisionExpert):
    """Read feature maps from one ``.npz`` (or ``.npy``) file per image.

    ``a/b.jpg`` below ``image_root`` has its features in ``root/a/b.npz``: array ``feature``
    ``(C,h,w)`` of any numeric dtype, optionally ``scale`` to multiply it with. Pickled arrays are
    refused.

    Args:
        root: Folder of the feature files.
        image_root: Folder that image paths are taken relative to.
        suffix: ``'.npz'`` or ``'.npy'``.
        allow_missing: Give None for images without a file and count them in ``missing`` instead
            of raising.

    Raises:
        FileNotFoundError: ``root`` does not exist.
    """

    def __init__(self, root: str, image_root: str, suffix: str = '.npz',
                 allow_missing: bool = False) -> None:
        self.root = Path(root)
        self.image_root = image_root
        self.suffix = suffix
        self.allow_missing = allow_missing
        self.missing: Counter = Counter()
        if not self.root.is_dir():
            raise FileNotFoundError(
                f'distill.expert.root: folder {root} does not exist; write the features first, or '
                'train without them: --cfg-options model.distill="[]"')

    def __call__(self, data_samples: Sequence[PixelDataSample]) -> list[Tensor | None]:
        """See :class:`VisionExpert`."""
        return [self._read(sample.get('img_path')) for sample in data_samples]

    def _read(self, img_path: str | None) -> Tensor | None:
        if img_path is None:
            return None
        relative = osp.splitext(osp.relpath(img_path, self.image_root))[0]
        file = self.root / (relative + self.suffix)
        try:
            content = np.load(file, allow_pickle=False)
            if self.suffix == '.npy':
                return torch.from_numpy(content.astype(np.float32))
            with content:
                scale = content['scale'] if 'scale' in content.files else 1.0
                return torch.from_numpy(content['feature'].astype(np.float32) * scale)
        except FileNotFoundError as error:
            if self.allow_missing:
                self.missing[str(file)] += 1
                return None
            raise FileNotFoundError(
                f'{file}: no expert feature for image {img_path}; write it, or set '
                'allow_missing=True in distill.expert') from error
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f'{file}: not a readable feature file ({error}); it needs the array '
                             '"feature" of shape (C,h,w), without pickled objects') from error
