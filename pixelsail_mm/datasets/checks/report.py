"""Report of a data check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ERROR, WARNING = 'error', 'warning'
_SHOWN_PER_KIND = 5


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        dataset: Config key of the dataset, e.g. ``'train_dataloader.dataset.datasets[2]'``.
        kind: Class of the fault in a few words, e.g. ``'missing'``; faults are grouped by it.
        message: What, where, and what to do.
        level: ``'error'`` or ``'warning'``.
        times: How often it occurs.
        hints: What may help, in sentences; each is shown once for all faults that have it.
    """

    dataset: str
    kind: str
    message: str
    level: str = ERROR
    times: int = 1
    hints: tuple[str, ...] = ()


@dataclass
class Report:
    """All faults, and the numbers of entries and samples that were checked.

    Attributes:
        faults: In the order they were found.
        readers: What each dataset is, in words.
        items: Items of each dataset.
        sampled: Samples of each dataset that were loaded.
        images: Different images of each dataset.
        paths: Files and folders that each dataset reads.
        unchecked: What could not be checked, and why; a dict for its order.
        overlap: Images (see :func:`~pixelsail_mm.datasets.files.image_keys.image_key`) that are
            both trained on and evaluated.
    """

    faults: list[Fault] = field(default_factory=list)
    readers: dict[str, str] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    sampled: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    paths: dict[str, list[str]] = field(default_factory=dict)
    unchecked: dict[str, None] = field(default_factory=dict)
    overlap: set[str] = field(default_factory=set)

    def add(self, *args, **kwargs) -> None:
        """Add a :class:`Fault` of these arguments."""
        self.faults.append(Fault(*args, **kwargs))

    def count(self, level: str) -> int:
        """Number of faults of a level."""
        return sum(fault.times for fault in self.faults if fault.level == level)

    def _title(self, key: str) -> str:
        return f'{key} ({self.readers[key]})' if key in self.readers else key

    def text(self) -> str:
        """Readable report: what each dataset reads, then the faults by dataset and kind."""
        lines = []
        for key, items in self.items.items():
            lines.append(
                f'{self._title(key)}: {items} items of {self.images.get(key, 0)} images, '
                f'{self.sampled.get(key, 0)} loaded'
            )
            lines.append(f'  reads {", ".join(self.paths.get(key, ()))}')
        hints: set[str] = set()
        for dataset in dict.fromkeys(fault.dataset for fault in self.faults):
            lines += ['', self._title(dataset)]
            lines += self._of_dataset([f for f in self.faults if f.dataset == dataset], hints)
        lines += [''] * bool(self.unchecked) + [f'not checked: {what}' for what in self.unchecked]
        errors, warnings = self.count(ERROR), self.count(WARNING)
        return '\n'.join([*lines, '', f'{errors} errors, {warnings} warnings'])

    @staticmethod
    def _of_dataset(faults: list[Fault], hints: set[str]) -> list[str]:
        """Lines about the faults of a dataset; ``hints`` are those that have been given."""
        lines = []
        shown: Counter = Counter()
        for fault in faults:
            shown[fault.kind] += 1
            if shown[fault.kind] > _SHOWN_PER_KIND:
                continue
            times = f' ({fault.times} times)' if fault.times > 1 else ''
            lines.append(f'  {fault.level}: {fault.kind}: {fault.message}{times}')
            lines += [f'    {hint}' for hint in fault.hints if hint not in hints]
            hints.update(fault.hints)
        return lines + [
            f'  ... and {n - _SHOWN_PER_KIND} more: {kind}'
            for kind, n in shown.items()
            if n > _SHOWN_PER_KIND
        ]
