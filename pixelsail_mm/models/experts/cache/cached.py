"""Expert features that were computed beforehand."""

from __future__ import annotations

import os.path as osp
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.base import VisionExpert, has_image
from pixelsail_mm.models.experts.cache.feature_files import SUFFIXES, FileStore
from pixelsail_mm.models.experts.cache.feature_shards import INDEX, KIND, ShardStore, read_index
from pixelsail_mm.models.experts.cache.fingerprint import (
    expert_fingerprint,
    mismatches,
    plain,
    untold,
)
from pixelsail_mm.models.experts.cache.image_names import Roots, image_name
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

_TOOL = 'tools/dataset_converters/cache_expert_features.py'


@MODELS.register_module()
class CachedExpert(VisionExpert):
    """Read feature maps instead of computing them; the expert itself is never built.

    ``root`` is one of two layouts:

    * shards that ``tools/dataset_converters/cache_expert_features.py`` wrote, see
      :mod:`~.feature_shards`. An image that has changed since is refused.
    * one file per image. With ``key='img_path'``, ``a/b.jpg`` below ``image_root`` has its features
      in ``root/a/b.npz``; with ``key='sample_id'``, sample ``a/b`` has them there. A file holds the
      array ``feature`` ``(C,h,w)``: floating point, or integers with a number ``scale`` to multiply
      them with (a ``.npy`` file has no room for a scale). Nothing is ever unpickled.

    ``root/index.json`` says how the features were made: the expert's
    :meth:`~.base.VisionExpert.fingerprint`; files of one's own may have none.

    Args:
        root: Folder of the features.
        image_root: Folder that image paths are taken relative to, or several as
            ``{label: folder}``; needed for ``key='img_path'``.
        suffix: ``'.npz'``, ``'.npy'`` or ``'.safetensors'``; of files.
        allow_missing: Give None for images without features and count them in ``missing`` instead
            of raising.
        key: What names the features of a sample: ``'img_path'`` or, of files, ``'sample_id'``.
        fingerprint: Entries that ``index.json`` must have; None checks nothing.
        of: Config of the expert whose features must be here, e.g. ``dict(type='SAM2Expert',
            model='facebook/sam2.1-hiera-large')``: its fingerprint is compared with that in
            ``index.json``. What cannot be told on this machine, e.g. as the weights are not here,
            is left out and reported.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ConfigError: An argument is not one of those above, ``index.json`` is damaged or says
            something else than ``fingerprint`` and ``of``, or a shard is truncated.
    """

    def __init__(
        self,
        root: str,
        image_root: Roots | None = None,
        suffix: str = '.npz',
        allow_missing: bool = False,
        key: str = 'img_path',
        fingerprint: Mapping[str, Any] | None = None,
        of: Mapping[str, Any] | None = None,
    ) -> None:
        if suffix not in SUFFIXES:
            raise ConfigError(f'distill.expert.suffix={suffix!r}: use one of {list(SUFFIXES)}')
        if key not in ('img_path', 'sample_id'):
            raise ConfigError(f"distill.expert.key={key!r}: use 'img_path' or 'sample_id'")
        if key == 'img_path' and image_root is None:
            raise ConfigError(
                "distill.expert.image_root is missing: key='img_path' needs the "
                'folder that image paths are relative to'
            )
        self.root, self.image_root, self.key = Path(root), image_root, key
        self.allow_missing = allow_missing
        self.missing: Counter = Counter()
        if not self.root.is_dir():
            raise FileNotFoundError(
                f'distill.expert.root: folder {root} does not exist; write the features first '
                f'({_TOOL}), or train without them: --cfg-options model.distill="[]"'
            )
        self.header = read_index(self.root)
        self.sharded = str((self.header or {}).get('format')).startswith(KIND)
        if self.sharded and key != 'img_path':
            raise ConfigError(
                f'distill.expert.key={key!r}: the cache {root} knows images by their '
                "paths; use key='img_path'"
            )
        self._check_header(dict(fingerprint or {}), of)
        self.store = ShardStore(self.root) if self.sharded else FileStore(self.root, suffix)

    def _check_header(self, expected: dict[str, Any], of: Mapping[str, Any] | None) -> None:
        """Compare what the config says with what the maker of the features wrote down."""
        warn = MMLogger.get_current_instance().warning
        if of is not None:
            expected = {**expert_fingerprint(of), **expected}
            if unknown := list(untold(self.header, expected)):
                warn(
                    f'{self.root}: {", ".join(unknown)} of {of["type"]} cannot be told from its '
                    'config alone (files are not on this machine, weights are random, or a size '
                    "is the model's own), so the cache is only checked for the rest"
                )
        if not expected:
            if self.sharded:
                warn(
                    f'{self.root}: nothing in the config says whose features are expected here; '
                    'set distill.expert.of to the config of the expert to have it checked'
                )
            return
        if self.header is None:
            raise ConfigError(
                f'{self.root / INDEX}: no such file, so distill.expert.of and '
                '.fingerprint cannot be checked; write the features again, or remove '
                'these'
            )
        if wrong := mismatches(self.header, plain(expected)):
            raise ConfigError(
                f'{self.root / INDEX}: features of another expert: '
                f'{"; ".join(wrong)}; correct distill.expert.root, .of or '
                '.fingerprint, or write the features again'
            )

    def fingerprint(self) -> dict[str, Any]:
        """The cache's record of the expert whose features it holds.

        Raises:
            ConfigError: It says nothing.
        """
        if self.header is None:
            raise ConfigError(
                f'{self.root / INDEX}: no such file, so nobody can tell whose features these are'
            )
        return {
            key: self.header.get(key)
            for key in ('expert', 'weights_sha256', 'feature', 'preprocessing')
        }

    def __call__(self, data_samples: Sequence[PixelDataSample]) -> list[Tensor | None]:
        """See :class:`VisionExpert`.

        Raises:
            FileNotFoundError: Features are missing and ``allow_missing`` is off.
            ConfigError: They are damaged, older than the image, or would lie outside of ``root``.
        """
        return [self._read(sample) if has_image(sample) else None for sample in data_samples]

    def _name(self, sample: PixelDataSample) -> str:
        name = sample.get(self.key)
        if name is None:
            raise ConfigError(
                f'distill.expert.key={self.key!r}: sample '
                f'{sample.get("sample_id")!r} does not have it; use the other key'
            )
        if self.key == 'sample_id':
            return str(name)
        name = image_name(name, self.image_root)
        return name if self.sharded else osp.splitext(name)[0]

    def _read(self, sample: PixelDataSample) -> Tensor | None:
        if sample.get('exif_rotated'):
            raise ConfigError(
                f'{sample.img_path}: turned as its EXIF data say, but features of '
                "experts are of stored pixels; remove exif='rotate' from LoadImage, "
                'or save the picture turned'
            )
        name = self._name(sample)
        current = self.store.is_current(name, sample.get('img_path'))
        if current is None:
            return self._note_missing(name, sample)
        if not current:
            raise ConfigError(
                f'{sample.img_path}: changed since its features in {self.root} were '
                f'made; run {_TOOL} again, which makes those of changed images anew'
            )
        return self.store.read(name)

    def _note_missing(self, name: str, sample: PixelDataSample) -> None:
        problem = (
            f'{self.store.place(name)}: no expert feature for {self.key} {sample.get(self.key)}'
        )
        if not self.allow_missing:
            raise FileNotFoundError(
                f'{problem}; write it, or set allow_missing=True in distill.expert'
            )
        if not self.missing:
            MMLogger.get_current_instance().warning(
                f'{problem}; such images are left out of the distillation loss (reported once)'
            )
        self.missing[name] += 1
