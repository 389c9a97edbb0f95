"""Report of loaded, missing and skipped weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pixelsail_mm.errors import shortened


@dataclass
class LoadReport:
    """The keys of a checkpoint and of a model, sorted by what happened to them.

    Attributes:
        source: The checkpoint's path.
        loaded: Model keys that got their value from the checkpoint.
        missing: Model keys the checkpoint does not hold.
        unexpected: Checkpoint keys the model does not have (skipped).
        reshaped: (key, shape in the checkpoint, shape in the model) of the same values in the same
            order, loaded.
        resized: Vocabulary tables of which rows were taken one by one, because the checkpoint has
            other tokens than the model: (key, shape in the checkpoint, shape in the model, what
            became of the rows). They count as loaded.
        mismatched: The first three where sizes differ; not loaded.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[tuple[str, tuple, tuple]] = field(default_factory=list)
    resized: list[tuple[str, tuple, tuple, str]] = field(default_factory=list)
    mismatched: list[tuple[str, tuple, tuple]] = field(default_factory=list)

    def table(self, max_names: int = 8) -> str:
        """Format the report: one row per top-level module, then the keys that need a look.

        Args:
            max_names: Keys listed per kind before the rest is summed up.
        """
        kinds = dict(
            loaded=self.loaded,
            missing=self.missing,
            unexpected=self.unexpected,
            reshaped=[f'{key} {old} -> {new}' for key, old, new in self.reshaped],
            resized=[f'{key} {old} -> {new}: {rows}' for key, old, new, rows in self.resized],
            mismatched=[f'{key} {old} -> {new}' for key, old, new in self.mismatched],
        )
        counts = {
            kind: Counter(note.partition(' ')[0].partition('.')[0] for note in notes)
            for kind, notes in kinds.items()
        }
        modules = sorted(set().union(*counts.values()))
        width = max([len(module) for module in modules] + [6])
        lines = [
            f'weights from {self.source}',
            f'{"module":<{width}}' + ''.join(f'{kind:>12}' for kind in kinds),
        ]
        for module in modules:
            lines.append(
                f'{module:<{width}}' + ''.join(f'{counts[kind][module]:>12}' for kind in kinds)
            )
        for kind, notes in kinds.items():
            if notes and kind != 'loaded':
                lines.append(f'{kind}: {shortened(notes, max_names)}')
        return '\n'.join(lines)
