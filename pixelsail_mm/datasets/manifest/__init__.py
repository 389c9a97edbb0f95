"""The manifest of public data sets: where they come from, where they lie, how they are read."""

from pixelsail_mm.datasets.manifest.entries import (
    dataset_cfg,
    evaluation_loaders,
    evaluation_splits,
    load_manifest,
    moved_reader,
)

__all__ = [
    'dataset_cfg',
    'evaluation_loaders',
    'evaluation_splits',
    'load_manifest',
    'moved_reader',
]
