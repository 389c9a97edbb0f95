"""A benchmark's config and a model's config become one."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from pixelsail_mm.datasets.manifest import moved_reader
from pixelsail_mm.errors import ConfigError

#: Key of a benchmark's config: the config of the model that is tested, unless --model names one.
MODEL_CONFIG = 'model_config'
# What a benchmark takes from the config of the model.
_OF_THE_MODEL = ('eval_loader', 'test_pipeline', 'data_root')


def is_benchmark(cfg: Mapping[str, Any]) -> bool:
    """Whether a config is that of a benchmark: it takes its model from another config."""
    return MODEL_CONFIG in cfg


def with_model(benchmark: Config, model: Config) -> Config:
    """Merge a benchmark's config into a model's.

    The test sets get the model's ``eval_loader``, ``test_pipeline`` and ``data_root``, as far as
    the benchmark does not set them itself; all other keys are merged as those of a child config.

    Args:
        benchmark: Config with ``test_dataloader`` and ``test_evaluator``, whose data lies in the
            folder ``data``, as in the manifest.
        model: Config of the model.

    Raises:
        ConfigError: The model's config lacks what its test sets need.
    """
    missing = [key for key in _OF_THE_MODEL if key not in model]
    if missing:
        raise ConfigError(
            f'--model {model.filename}: has no {", ".join(missing)}, which a '
            'benchmark needs of it; see configs/_base_/datasets/cotrain.py'
        )
    cfg = Config(
        copy.deepcopy(model._cfg_dict),
        cfg_text=f'{model.text}\n{benchmark.text}',
        filename=benchmark.filename,
    )
    loaders = [
        dict(
            model.eval_loader,
            **dict(
                loader,
                dataset=dict(
                    pipeline=model.test_pipeline, **moved_reader(loader.dataset, model.data_root)
                ),
            ),
        )
        for loader in benchmark.test_dataloader
    ]
    cfg.merge_from_dict(
        dict(
            benchmark._cfg_dict,
            test_dataloader=loaders,
            **{MODEL_CONFIG: osp.abspath(model.filename)},
        )
    )
    return cfg
