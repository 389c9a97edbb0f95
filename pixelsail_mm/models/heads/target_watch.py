"""Tell when a head never finds what it learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pixelsail_mm.models.heads.base import SegTokenHead
from pixelsail_mm.notices import warn_once
from pixelsail_mm.structures import PixelDataSample


class TargetWatch:
    """Warns once if no sample of many batches has a field that a head learns from.

    A misspelt name in ``targets`` would otherwise train with losses of exactly zero, and say
    nothing.

    Args:
        patience: Number of batches with ``[SEG]`` tokens after which it warns.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._missed: Counter = Counter()
        self._found: set[str] = set()

    def __call__(
        self, heads: Mapping[str, SegTokenHead], samples: Sequence[PixelDataSample]
    ) -> None:
        """Look at a batch."""
        for name, head in heads.items() if samples else ():
            for key in set(head.targets) - self._found:
                if any(sample.get(key) is not None for sample in samples):
                    self._found.add(key)
                    continue
                self._missed[name, key] += 1
                if self._missed[name, key] == self.patience:
                    warn_once(
                        f'model.heads.{name} learns from {key}, which no sample of the first '
                        f'{self.patience} batches has: its losses are 0. Check `targets` of '
                        f'{type(head).__name__}, and the transform that adds {key}'
                    )
