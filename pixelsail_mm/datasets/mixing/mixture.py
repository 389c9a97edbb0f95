"""Several datasets in fixed shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pixelsail_mm.datasets.mixing.combination import build_parts
from pixelsail_mm.datasets.sample_source import SampleSource
from pixelsail_mm.registry import DATASETS


@DATASETS.register_module()
class MixtureDataset(Dataset):
    """Mix datasets, each with its own pipeline, in fixed shares of an epoch.

    An epoch holds exactly the configured number of samples of each part. A part that is larger
    than its share continues in the next epoch where it stopped, so all its items are seen; a part
    that is smaller is drawn again with new randomness. Draw indices may count on beyond the length
    (see :class:`SampleSource`).

    Args:
        datasets: Configs or built datasets.
        repeats: Samples of each part per epoch as a multiple of its length (the recipe's listings
            and repeats; 0.5 takes half per epoch). Default 1 each.
        weights: Instead of ``repeats``: shares of the parts.
        length: Samples per epoch; only with ``weights``. Default: sum of the lengths.
        seed: Part i without a seed of its own gets ``seed + i``.
        pipeline: Pipeline of parts that do not set one.

    Raises:
        MissingFilesError: Files are missing; those of all parts are named.
        ValueError: Shares do not fit the datasets.
    """

    def __init__(
        self,
        datasets: Sequence[Mapping | SampleSource],
        repeats: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        length: int | None = None,
        seed: int = 0,
        pipeline: Sequence | None = None,
    ) -> None:
        defaults = {} if pipeline is None else dict(pipeline=pipeline)
        self.datasets = build_parts(datasets, type(self).__name__, seed, **defaults)
        self.metainfo = dict(
            datasets=[getattr(part, 'name', type(part).__name__) for part in self.datasets]
        )
        self._counts = self._epoch_counts(repeats, weights, length)
        self._ends = np.cumsum(self._counts)

    def _epoch_counts(
        self, repeats: Sequence[float] | None, weights: Sequence[float] | None, length: int | None
    ) -> list[int]:
        sizes = [len(part) for part in self.datasets]
        shares = repeats if weights is None else weights
        if repeats is not None and weights is not None:
            raise ValueError('MixtureDataset: give repeats or weights, not both')
        if length is not None and weights is None:
            raise ValueError('MixtureDataset: length needs weights')
        if shares is None:
            return sizes
        if len(shares) != len(sizes) or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(
                f'MixtureDataset: {len(sizes)} datasets need as many non-negative '
                f'repeats or weights, not all zero; got {list(shares)}'
            )
        if weights is None:
            return [round(share * size) for share, size in zip(shares, sizes)]
        # Rounding the cumulated shares keeps the sum exact.
        total = sum(sizes) if length is None else length
        ends = np.round(np.cumsum(weights) / sum(weights) * total).astype(int)
        return np.diff(ends, prepend=0).tolist()

    def locate(self, idx: int) -> tuple[int, int]:
        """Part of a draw index and the draw index within the part."""
        epoch, position = divmod(int(idx), len(self))
        part = int(np.searchsorted(self._ends, position, side='right'))
        start = int(self._ends[part]) - self._counts[part]
        return part, epoch * self._counts[part] + position - start

    def __len__(self) -> int:
        """Samples per epoch."""
        return int(self._ends[-1])

    def __getitem__(self, idx: int) -> Any:
        """Draw a sample, see :meth:`SampleSource.__getitem__`."""
        if idx < 0:
            raise IndexError(f'draw index {idx} is negative')
        part, inner = self.locate(idx)
        return self.datasets[part][inner]

    def __iter__(self) -> Iterator:
        """One epoch in order; indexing itself never ends."""
        return (self[i] for i in range(len(self)))

    @property
    def skipped(self) -> Counter:
        """Skipped samples of all parts."""
        return sum((part.skipped for part in self.datasets), Counter())

    @property
    def noted(self) -> Counter:
        """Numbers of values that were changed while reading, of all parts."""
        return sum((part.noted for part in self.datasets), Counter())

    @property
    def modality_length(self) -> list[int]:
        """True token counts of the parts' first draws, negative for text only."""
        lengths = [part.modality_length for part in self.datasets]
        found = (self.locate(i) for i in range(len(self)))
        return [lengths[part][inner % len(lengths[part])] for part, inner in found]
