"""Build the caches of a config's data loaders before a training on many processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from pixelsail_mm.datasets.checks.leaves import Leaf, find_leaves
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import DATASETS

Progress = Callable[[Iterable, int], Iterable]
_BY_LENGTH = 'LengthGroupedSampler'


@dataclass(frozen=True)
class Prepared:
    """Result of preparing one reader.

    Attributes:
        key: Where the reader stands in the config.
        items: Number of its items.
        seconds: How long it took; next to nothing if all was there.
    """

    key: str
    items: int
    seconds: float


def prepare_config(
    cfg: Mapping[str, Any], workers: int = 1, progress: Progress = lambda done, total: done
) -> list[Prepared]:
    """Parse all annotations, and measure all lengths if samples are grouped by them.

    Every process of a training would otherwise do the same work at the same time.

    Args:
        cfg: The config.
        workers: Readers that are built at once, each in a process of its own.
        progress: Wraps the results as they come; called with them and their number.

    Returns:
        One result per reader with an ``index_cache``, in the order of the config.

    Raises:
        ConfigError: No reader has an ``index_cache``.
        AnnotationError: See the readers.
    """
    leaves = {leaf.key: leaf for leaf in find_leaves(cfg) if leaf.cfg.get('index_cache')}
    if not leaves:
        raise ConfigError(
            'no reader of the config has an index_cache, the folder to keep its '
            "index in; give the readers index_cache='data/.index_cache'"
        )
    by_length = _BY_LENGTH in str(cfg.get('train_dataloader', {}).get('sampler'))
    # Spawned: forked processes inherit locks of threads that are not there.
    with ProcessPoolExecutor(min(workers, len(leaves)), get_context('spawn')) as pool:
        futures = [
            pool.submit(_prepare, leaf, by_length and leaf.role == 'train')
            for leaf in leaves.values()
        ]
        found = {
            future.result().key: future.result()
            for future in progress(as_completed(futures), len(futures))
        }
    return [found[key] for key in leaves]


def _prepare(leaf: Leaf, lengths: bool) -> Prepared:
    import pixelsail_mm.datasets  # noqa: F401  registers the readers

    start = time.perf_counter()
    dataset = DATASETS.build(dict(leaf.cfg))
    if lengths:
        dataset.modality_length  # noqa: B018  measured and kept
    return Prepared(leaf.key, len(dataset), time.perf_counter() - start)
