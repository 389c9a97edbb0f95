"""The images of a data set, listed without decoding an image or a mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import init_default_scope

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import DATASETS, SCOPE


def training_images(cfg: Mapping[str, Any]) -> list[str]:
    """Paths of all images that a training draws from, each once, sorted.

    Args:
        cfg: The whole config; its ``train_dataloader`` counts. Pipelines are not built, so that
            tokenizers and the like need not be there.

    Raises:
        ConfigError: There is no ``train_dataloader``, or no image in it.
        MissingFilesError: Annotation files or folders are missing.
    """
    loader = cfg.get('train_dataloader')
    if not loader:
        raise ConfigError('the config has no train_dataloader, whose images would be listed')
    init_default_scope(cfg.get('default_scope', SCOPE))  # MMEngine's wrappers look types up in it
    paths = sorted(set(_paths(DATASETS.build(_without_pipelines(loader['dataset'])))))
    if not paths:
        raise ConfigError('train_dataloader.dataset has no image, only text')
    return paths


def _without_pipelines(cfg: Any) -> Any:
    if isinstance(cfg, Mapping):
        return {key: _without_pipelines(value) for key, value in cfg.items() if key != 'pipeline'}
    if isinstance(cfg, Sequence) and not isinstance(cfg, str):
        return [_without_pipelines(value) for value in cfg]
    return cfg


def _paths(dataset: Any) -> Iterator[str]:
    """Paths of a data set's images, or of those it is made of (MMEngine's wrappers as well)."""
    if hasattr(dataset, 'image_path'):
        every = (dataset.image_path(i) for i in range(len(dataset)))
        yield from (path for path in every if path is not None)
    elif hasattr(dataset, 'datasets') or hasattr(dataset, 'dataset'):
        for part in getattr(dataset, 'datasets', None) or [dataset.dataset]:
            yield from _paths(part)
    else:
        raise ConfigError(
            f'train_dataloader.dataset: {type(dataset).__name__} does not say which '
            'images it has; give it a method image_path(index) -> str | None'
        )
