"""Samples of an evaluation that cannot be read: left out of the batches, counted and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmengine.dist import all_gather_object
from torch.utils.data import DataLoader

from pixelsail_mm.datasets.sample_source import SampleSource, Unreadable

#: Name of the number of unreadable samples among the metrics of a data set.
COUNT = 'unreadable_samples'
_SHOWN = 10


class Sorted(NamedTuple):
    """A batch without its unreadable samples.

    Attributes:
        batch: What the collate function gives for the others; None if there are none.
        unreadable: Those that were left out.
    """

    batch: Any
    unreadable: list[Unreadable]


class SortingCollate:
    """Leave unreadable samples out of a batch.

    Args:
        collate: The collate function for the others.
    """

    def __init__(self, collate: Callable) -> None:
        self.collate = collate

    def __call__(self, items: Sequence) -> Sorted:
        """Collate the samples of a batch."""
        unreadable = [item for item in items if isinstance(item, Unreadable)]
        rest = [item for item in items if not isinstance(item, Unreadable)]
        return Sorted(self.collate(rest) if rest else None, unreadable)


def sort_batches(loader: DataLoader) -> None:
    """Make a data loader give :class:`Sorted` batches; before it is first iterated.

    Args:
        loader: Of a :class:`~pixelsail_mm.datasets.sample_source.SampleSource`, or a mixture of
            some. Data sets of other libraries raise as before.
    """
    _keep_unreadable(loader.dataset)
    loader.collate_fn = SortingCollate(loader.collate_fn)


def _keep_unreadable(dataset: Any) -> None:
    if isinstance(dataset, SampleSource):
        dataset.keeps_unreadable = True
    for part in getattr(dataset, 'datasets', ()):
        _keep_unreadable(part)


def of_all_processes(mine: Sequence[Unreadable]) -> list[Unreadable]:
    """Unreadable samples of all processes, each once: samplers repeat some.

    Args:
        mine: Those of this process.
    """
    found = {
        (sample.dataset, sample.item): sample
        for samples in all_gather_object(list(mine))
        for sample in samples
    }
    return [found[key] for key in sorted(found)]


def listing(unreadable: Sequence[Unreadable]) -> str:
    """Name unreadable samples, a line each.

    Args:
        unreadable: At least one.
    """
    lines = [f'  {sample.error}' for sample in unreadable[:_SHOWN]]
    if len(unreadable) > _SHOWN:
        lines.append(f'  and {len(unreadable) - _SHOWN} more')
    return '\n'.join(lines)
