"""Base of readers and their combinations: deterministic draws, skipping of broken samples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from pixelsail_mm.datasets.files.skip_counter import SkipCounter
from pixelsail_mm.datasets.token_lengths import LengthMeter, Record, measure_lengths
from pixelsail_mm.errors import BadSampleError, NoUsableSampleError

_LOGGED_SKIPS = 10


class Unreadable(NamedTuple):
    """A sample of a test set that cannot be read; see :attr:`SampleSource.keeps_unreadable`.

    Attributes:
        dataset: Name of the data set.
        item: Number of the sample in it.
        error: What is wrong.
    """

    dataset: str
    item: int
    error: BadSampleError


class SampleSource:
    """Base of readers and their combinations: a sample is a pure function of (seed, index).

    ``dataset[idx]`` is item ``idx % len(dataset)``; all randomness of the sample comes from
    ``np.random.default_rng([seed, idx])``. A sampler may therefore count on beyond the length
    ("draw indices") to get fresh draws of the same items, and resuming is exact whatever the
    number of workers.

    Subclasses set ``name``, ``seed``, ``test_mode``, ``max_refetch``, ``pipeline``, ``_skips`` and
    ``_notes`` and give ``__len__`` and ``record``.
    """

    name: str
    seed: int
    test_mode: bool
    max_refetch: int
    pipeline: Callable
    _skips: SkipCounter
    _notes: SkipCounter
    #: In test mode, give an :class:`Unreadable` in the place of a sample that cannot be read
    #: instead of raising its error. An evaluation counts them; a worker that raises ends it.
    keeps_unreadable = False
    _num_logged = 0
    _modality_length: list[int] | None = None

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """Canonical record of an item.

        Args:
            index: Item, 0 <= index < len.
            rng: Source of all randomness of the sample.
            num_turns: Number of conversation turns wanted instead of the configured one.

        Returns:
            dict with ``img_path`` (str | None), ``conversation`` (list of ``dict(human=, gpt=)``),
            ``masks`` (in ``[SEG]`` order), ``prompts``, ``meta`` and, if the annotation states
            them, ``height`` and ``width``.

        Raises:
            BadSampleError: The annotation cannot be used.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement record')

    @property
    def modality_length(self) -> list[int]:
        """True number of tokens of each item's first draw, negative for text only.

        The sign convention is that of XTuner's ``LengthGroupedSampler``.

        Raises:
            ValueError: The pipeline does not make tokens.
        """
        if self._modality_length is None:
            meter = LengthMeter(self.pipeline.transforms, self.name)
            self._modality_length = measure_lengths(self, meter)
        return self._modality_length

    @property
    def skipped(self) -> Counter:
        """Reasons of skipped entries and samples with their numbers, of all worker processes."""
        return self._skips.counts()

    @property
    def noted(self) -> Counter:
        """Numbers of values that were changed while reading, of all worker processes."""
        return self._notes.counts()

    def __iter__(self) -> Iterator:
        """One pass; indexing itself never ends."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, idx: int) -> Any:
        """Draw a sample.

        Args:
            idx: Draw index >= 0.

        Returns:
            Output of the pipeline; or an :class:`Unreadable`, if they are kept.

        Raises:
            IndexError: Negative index.
            BadSampleError: The sample is broken, in test mode only.
            NoUsableSampleError: ``max_refetch`` further samples are broken as well.
        """
        idx = int(idx)
        if idx < 0:
            raise IndexError(f'draw index {idx} is negative')
        rng = np.random.default_rng([self.seed, idx])
        item = idx % len(self)
        for _ in range(self.max_refetch + 1):
            try:
                return self._load(item, rng)
            except BadSampleError as error:
                if self.test_mode and self.keeps_unreadable:
                    return Unreadable(self.name, item, error)
                if self.test_mode:
                    raise
                self._skip(error)
                last = error
            item = int(rng.integers(len(self)))
        raise NoUsableSampleError(
            f'{self.name}: {self.max_refetch + 1} samples in a row cannot be used, the last one: '
            f'{last}. Check data_root and data_prefix, or let tools/misc/check_data.py list what '
            'is wrong'
        )

    def _load(self, item: int, rng: np.random.Generator) -> Any:
        notes: list[str] = []
        results = self.pipeline(dict(self.record(item, rng), rng=rng, notes=notes))
        if isinstance(results, dict):
            results.pop('notes', None)  # left there by a pipeline that does not pack
        for note in notes:
            if self._notes.is_first(note):
                print_log(
                    f'{self.name}: item {item}: {note} (further ones are only counted)',
                    'current',
                    logging.WARNING,
                )
            self._notes.add(note)
        return results

    def _skip(self, error: BadSampleError) -> None:
        self._skips.add(f'{error.key}: {error.reason}')
        self._num_logged += 1
        if self._num_logged <= _LOGGED_SKIPS:
            more = ' (further ones are only counted)' if self._num_logged == _LOGGED_SKIPS else ''
            print_log(f'skipped sample: {error}{more}', 'current', logging.WARNING)
