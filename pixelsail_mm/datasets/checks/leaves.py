"""The readers that a config names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelsail_mm.datasets.mixing.combination import part_config

TRAIN, EVALUATION = 'train', 'evaluation'
# Config keys of the data loaders, and what their readers are for.
LOADERS = dict(train_dataloader=TRAIN, val_dataloader=EVALUATION, test_dataloader=EVALUATION)


@dataclass(frozen=True)
class Leaf:
    """One reader of a config.

    Attributes:
        key: Where it stands in the config.
        role: ``'train'`` or ``'evaluation'``.
        cfg: Its config, with the pipeline and the seed that it gets.
    """

    key: str
    role: str
    cfg: dict[str, Any]


def find_leaves(cfg: Mapping[str, Any], loaders: Sequence[str] = tuple(LOADERS)) -> list[Leaf]:
    """List the readers of data loaders; equal ones (validation and test) once.

    Args:
        cfg: The whole config.
        loaders: Config keys of the data loaders; all of them by default.
    """
    found: list[Leaf] = []
    for loader, role in LOADERS.items():
        value = cfg.get(loader) if loader in loaders else None
        several = isinstance(value, (list, tuple))
        for i, entry in enumerate(value if several else [value] if value else []):
            key = f'{loader}[{i}].dataset' if several else f'{loader}.dataset'
            for leaf in _walk(entry['dataset'], key, role, ()):
                if all((leaf.role, leaf.cfg) != (other.role, other.cfg) for other in found):
                    found.append(leaf)
    return found


def _walk(cfg: Mapping[str, Any], key: str, role: str, pipeline) -> Iterator[Leaf]:
    pipeline = cfg.get('pipeline', pipeline)
    if 'datasets' in cfg:
        for i, part in enumerate(cfg['datasets']):
            part = part_config(part, i, cfg.get('seed', 0))
            yield from _walk(part, f'{key}.datasets[{i}]', role, pipeline)
    else:
        yield Leaf(key, role, dict(cfg, pipeline=pipeline))
