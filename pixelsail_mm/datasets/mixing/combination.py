"""Base of datasets that combine other datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pixelsail_mm.datasets.sample_source import SampleSource
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS


def part_config(cfg: Mapping, number: int, seed: int, **defaults) -> dict:
    """Config of a part of a combination: without a seed of its own part i gets ``seed + i``."""
    return {**defaults, 'seed': seed + number, **cfg}


def build_parts(
    datasets: Sequence[Mapping | SampleSource], owner: str, seed: int, **defaults
) -> list[SampleSource]:
    """Build the datasets of a combination.

    Args:
        datasets: Configs or built datasets.
        owner: Name of the combination, for errors.
        seed: See :func:`part_config`; equal readers draw differently.
        **defaults: Keywords for parts that do not set them.

    Returns:
        The datasets.

    Raises:
        MissingFilesError: Files are missing; those of all parts are named.
        ValueError: No dataset is given.
    """
    if not datasets:
        raise ValueError(f'{owner}: datasets is empty; list at least one dataset')
    parts, missing = [], []
    for i, cfg in enumerate(datasets):
        if isinstance(cfg, SampleSource):
            parts.append(cfg)
            continue
        try:
            parts.append(DATASETS.build(part_config(cfg, i, seed, **defaults)))
        except MissingFilesError as error:
            missing += [(f'datasets[{i}].{key}', path) for key, path in error.missing]
    if missing:
        raise MissingFilesError(missing, owner)
    return parts
