"""From a config and a checkpoint to a model that is ready to answer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from pixelsail_mm.checkpoints.folders.reading import read_model_config
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS, SCOPE


def init_model(
    config: str | os.PathLike | Mapping | Config,
    checkpoint: str | os.PathLike | None = None,
    device: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model, load its weights and put it into eval mode.

    Parts that only training uses (``distill`` with its experts) are not built.

    Args:
        config: Config file; or a folder with a config and safetensors, whose weights are loaded
            unless ``checkpoint`` is given; or a config object or dict. The config of a folder is
            the ``config.json`` of an export with what its ``config.py`` adds, or a ``config.py`` or
            another only ``.py`` that is complete. Tokenizer and
            language-model paths that exist relative to the config's folder are taken from there,
            so that a shipped folder works from any directory.
        checkpoint: Anything :func:`pixelsail_mm.checkpoints.checkpoint.load_state` reads.
        device: E.g. ``'cpu'``, ``'cuda:0'``; the best available one by default.
        cfg_options: Settings that override the config, keys joined by dots.

    Returns:
        The model, with ``model.cfg`` (the config used) and ``model.load_report``
        (:class:`~pixelsail_mm.checkpoints.checkpoint.LoadReport`, ``None`` for random weights).

    Raises:
        ConfigError: There is no such config, or it has no ``model``.
        CheckpointError: The checkpoint is unreadable or lacks weights that prediction uses.

    Example:
        >>> model = init_model('demo/checkpoints/pixelsail_tiny_grounding')  # doctest: +SKIP
    """
    from mmengine.device import get_device
    from mmengine.logging import print_log
    from mmengine.registry import init_default_scope

    from pixelsail_mm.checkpoints.checkpoint import load_weights

    cfg, shipped = read_model_config(config)
    if cfg_options:
        cfg.merge_from_dict(dict(cfg_options))
    if cfg.get('model') is None:
        raise ConfigError(
            f'{cfg.filename or "the config"} has no `model`; give the config of a '
            'model, such as those in configs/pixelsail'
        )
    init_default_scope(cfg.get('default_scope', SCOPE))
    model = MODELS.build(dict(cfg.model, distill=[]) if 'distill' in cfg.model else cfg.model)
    checkpoint = checkpoint or shipped
    model.load_report = None
    if checkpoint is None:
        warnings.warn(
            'init_model: no checkpoint given, parts of the model have random weights', stacklevel=2
        )
    else:
        model.load_report = load_weights(model, checkpoint)
        print_log(model.load_report.table(), logger='current')
    model.cfg = cfg
    return model.to(device or get_device()).eval()
