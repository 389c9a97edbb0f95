"""What datasets made of other datasets share."""

from __future__ import annotations

from typing import Mapping, Sequence

from pixelsail_mm.datasets.annotation_files import MissingFilesError
from pixelsail_mm.datasets.base import SampleSource
from pixelsail_mm.registry import DATASETS


def build_parts(datasets: Sequence[Mapping | SampleSource], owner: str, seed: int,
                **defaults) -> list[SampleSource]:
    """Build the datasets of a combination.

    Args:
        datasets: Configs or built datasets.
        owner: Name of the combination, for errors.
        seed: Part i without a seed of its own gets ``seed + i``, so that equal readers draw
            differently.
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
            parts.append(DATASETS.build({**defaults, 'seed': seed + i, **cfg}))
        except MissingFilesError as error:
            missing += [(f'datasets[{i}].{key}', path) for key, path in error.missing]
    if missing:
        raise MissingFilesError(missing, owner)
    return parts
