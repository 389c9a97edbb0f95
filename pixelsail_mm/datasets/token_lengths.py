"""True token counts of samples, for samplers that group samples of similar length."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from pixelsail_mm.datasets.files.pictures import IGNORE, shown_size
from pixelsail_mm.datasets.transforms.conversation import BuildConversation
from pixelsail_mm.datasets.transforms.grid import ResizeToGrid
from pixelsail_mm.datasets.transforms.loading import LoadImage
from pixelsail_mm.errors import BadSampleError

Record = dict[str, Any]
_REPORT_SECONDS = 30.0


class LengthMeter:
    """Counts the tokens that a pipeline makes of a record, without decoding image or masks.

    Args:
        transforms: The pipeline, with ``ResizeToGrid`` and ``BuildConversation``.
        name: Name of the dataset, for errors.

    Raises:
        ValueError: One of the two transforms is missing.
    """

    def __init__(self, transforms: Sequence[Callable], name: str) -> None:
        self._resize = _find(transforms, ResizeToGrid, name)
        self._build = _find(transforms, BuildConversation, name)
        loaders = [stage for stage in transforms if isinstance(stage, LoadImage)]
        self._exif = loaders[0].exif if loaders else IGNORE

    def identity(self) -> dict:
        """Settings that the counts depend on besides the records; plain values for JSON."""
        tokenizer = self._build.tokenizer.backend_tokenizer.to_str()
        return dict(
            patch_size=self._resize.patch_size,
            max_size=self._resize.max_size,
            rule=self._resize.rule,
            image_layout=self._build.image_layout,
            image_in_question=self._build.image_in_question,
            tokenizer=hashlib.sha256(tokenizer.encode()).hexdigest(),
            template=self._build.template,
            max_length=self._build.max_length,
            # Caches of earlier versions are of stored pixels.
            **({} if self._exif == IGNORE else dict(exif=self._exif)),
        )

    def count(self, record: Record) -> int:
        """Tokens of a record, negative without an image (the convention of XTuner's sampler).

        Raises:
            BadSampleError: The record cannot be used.
        """
        size = _image_size(record, record.get('exif', self._exif))
        grid = (0, 0) if size is None else self._resize.grid(*size)
        tokens = self._build.count_tokens(dict(record, grid=grid))
        return tokens if size else -tokens


def measure_lengths(dataset: Any, meter: LengthMeter) -> list[int]:
    """Count the tokens of the first draw of every item.

    Later epochs draw other turns of the same items; their lengths are similar.

    Args:
        dataset: A :class:`.SampleSource`, whose draws are a function of (seed, index).
        meter: Counts a record's tokens.

    Returns:
        One number per item, see :meth:`LengthMeter.count`; 1 for a broken item, in whose place
        training draws another one.
    """
    lengths, last = [], time.monotonic()
    for index in range(len(dataset)):
        try:
            record = dataset.record(index, np.random.default_rng([dataset.seed, index]))
            lengths.append(meter.count(record))
        except BadSampleError:
            lengths.append(1)
        if time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            print_log(
                f'{dataset.name}: measured the length of {index + 1} of {len(dataset)} samples',
                'current',
            )
    return lengths


def _find(transforms: Sequence[Callable], kind: type, name: str) -> Any:
    for transform in transforms:
        if isinstance(transform, kind):
            return transform
    raise ValueError(
        f'{name}: token lengths need {kind.__name__} in the pipeline; add it, or use '
        'a sampler that does not group samples by length'
    )


def _image_size(record: Record, exif: str) -> tuple[int, int] | None:
    """(height, width) of a record's image as the model sees it; None for text only."""
    if not record.get('img_path'):
        return None
    if record.get('height') and record.get('width'):
        return record['height'], record['width']
    try:
        with Image.open(record['img_path']) as image:  # reads the header only
            return shown_size(image, exif)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSampleError(
            record['img_path'], 'img_path', f'cannot be opened ({error}); download it again'
        ) from error
