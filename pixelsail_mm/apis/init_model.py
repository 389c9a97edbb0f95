"""From a config and a checkpoint to a model that is ready to answer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Mapping

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings
from torch import nn

from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.registry import MODELS, SCOPE

_PATH_KEYS = ('tokenizer', 'pretrained_model_name_or_path', 'llm')


def init_model(config: str | os.PathLike | Mapping | Config,
               checkpoint: str | os.PathLike | None = None, device: str | None = None,
               cfg_options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model, load its weights and put it into eval mode.

    Parts that only training uses (``distill`` with its experts) are not built.

    Args:
        config: Config file; or a folder with a config (``config.py``, its only ``.py``, or the
            ``config.json`` of a folder written for Hugging Face) and safetensors, whose weights
            are loaded unless ``checkpoint`` is given; or a config object or dict. Tokenizer and
            language-model paths that exist relative to the config's folder are taken from there,
            so that a shipped folder works from any directory.
        checkpoint: Anything :func:`pixelsail_mm.engine.checkpoint.load_state` reads.
        device: E.g. ``'cpu'``, ``'cuda:0'``; the best available one by default.
        cfg_options: Settings that override the config, keys joined by dots.

    Returns:
        The model, with ``model.cfg`` (the config used) and ``model.load_report``
        (:class:`~pixelsail_mm.engine.checkpoint.LoadReport`, ``None`` for random weights).

    Raises:
        ConfigError: There is no such config, or it has no ``model``.
        CheckpointError: The checkpoint is unreadable or lacks weights that prediction uses.

    Example:
        >>> model = init_model('demo/checkpoints/pixelsail_tiny_grounding')  # doctest: +SKIP
    """
    from mmengine.device import get_device
    from mmengine.logging import print_log
    from mmengine.registry import init_default_scope

    from pixelsail_mm.engine.checkpoint import load_weights
    cfg, shipped = read_model_config(config)
    if cfg_options:
        cfg.merge_from_dict(dict(cfg_options))
    if cfg.get('model') is None:
        raise ConfigError(f'{cfg.filename or "the config"} has no `model`; give the config of a '
                          'model, such as those in configs/pixelsail')
    init_default_scope(cfg.get('default_scope', SCOPE))
    model = MODELS.build(dict(cfg.model, distill=[]) if 'distill' in cfg.model else cfg.model)
    checkpoint = checkpoint or shipped
    model.load_report = None
    if checkpoint is None:
        warnings.warn('init_model: no checkpoint given, parts of the model have random weights',
                      stacklevel=2)
    else:
        model.load_report = load_weights(model, checkpoint)
        print_log(model.load_report.table(), logger='current')
    model.cfg = cfg
    return model.to(device or get_device()).eval()


def read_model_config(config: str | os.PathLike | Mapping | Config
                      ) -> tuple[Config, Path | None]:
    """Read what :func:`init_model` takes as a config.

    Args:
        config: See :func:`init_model`.

    Returns:
        The config, and the folder of weights shipped with it (or None).

    Raises:
        ConfigError: There is no such config, or a module of its ``custom_imports`` cannot be
            imported.
    """
    if isinstance(config, Config):
        return config.copy(), None
    if isinstance(config, Mapping):
        return Config(dict(config)), None
    path = Path(config).expanduser().absolute()
    shipped = path if path.is_dir() and any(path.glob('*.safetensors')) else None
    if path.is_dir():
        path = _config_in(path)
    if path.name == 'config.json':
        from pixelsail_mm.hf.folder import read_folder
        return read_folder(path.parent), path.parent
    if not path.is_file():
        raise ConfigError(f'config {config}: no such file or folder (see configs/ and '
                          'demo/checkpoints/ for those that exist)')
    cfg = Config.fromfile(path, import_custom_modules=False)
    _import_modules(cfg, path)
    _anchor_paths(cfg._cfg_dict, path.parent)
    return cfg, shipped


def _import_modules(cfg: Config, path: Path) -> None:
    """Import ``custom_imports``, as MMEngine does, with an error that a user can act on."""
    if not cfg.get('custom_imports'):
        return
    try:
        import_modules_from_strings(**cfg.custom_imports)
    except (ImportError, TypeError) as error:
        cause = f' ({first_line(error.__context__)})' if error.__context__ else ''
        raise ConfigError(f'{path}: custom_imports: {first_line(error)}{cause}; put the folder that'
                          ' holds the module on PYTHONPATH, or install it') from error


def _config_in(folder: Path) -> Path:
    """The config file of a checkpoint folder."""
    for name in ('config.py', 'config.json'):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob('*.py'))
    if len(found) != 1:
        raise ConfigError(f'{folder}: expected one config (config.py or config.json), found '
                          f'{[file.name for file in found] or "none"}; pass the config file and '
                          'the checkpoint separately')
    return found[0]


def _anchor_paths(node: Any, folder: Path) -> None:
    """Make relative tokenizer and language-model paths absolute where ``folder`` has them."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _anchor_paths(item, folder)
    elif isinstance(node, (dict, ConfigDict)):
        for key, value in node.items():
            if key in _PATH_KEYS and isinstance(value, str):
                if not Path(value).is_absolute() and (folder / value).exists():
                    node[key] = str(folder / value)
            else:
                _anchor_paths(value, folder)
