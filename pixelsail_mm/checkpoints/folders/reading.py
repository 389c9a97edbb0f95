"""The config of a model, from a file or from a folder that holds a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pixelsail_mm.config import read_config
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.type_names import name_types, parts_of

_PATH_KEYS = ('tokenizer', 'pretrained_model_name_or_path', 'llm')


def read_model_config(config: str | os.PathLike | Mapping | Config) -> tuple[Config, Path | None]:
    """Read what :func:`~pixelsail_mm.apis.init_model.init_model` takes as a config.

    Args:
        config: Config file, folder, config object or dict, see there.

    Returns:
        The config, and the folder of weights shipped with it (or None).

    Raises:
        ConfigError: There is no such config, or a module of its ``custom_imports`` cannot be
            imported.
    """
    if isinstance(config, (Config, Mapping)):
        cfg = config.copy() if isinstance(config, Config) else Config(dict(config))
        name_types(cfg)
        return cfg, None
    path = Path(config).expanduser().absolute()
    shipped = path if path.is_dir() and any(path.glob('*.safetensors')) else None
    if path.is_dir():
        path = _config_in(path)
    from pixelsail_mm.checkpoints.folders.exported import read_folder  # imports Transformers

    if path.name == 'config.json':
        return read_folder(path.parent), path.parent
    if not path.is_file():
        raise ConfigError(
            f'config {config}: no such file or folder (see configs/ and '
            'demo/checkpoints/ for those that exist)'
        )
    cfg = read_config(path)
    _anchor_paths(cfg._cfg_dict, path.parent)
    if path.name == 'config.py' and 'model' not in cfg and path.with_name('config.json').is_file():
        beyond, cfg = cfg, read_folder(path.parent)
        cfg.merge_from_dict(beyond._cfg_dict.to_dict())
    return cfg, shipped


def _config_in(folder: Path) -> Path:
    """The config file of a checkpoint folder."""
    for name in ('config.py', 'config.json'):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob('*.py'))
    if len(found) != 1:
        raise ConfigError(
            f'{folder}: expected one config (config.py or config.json), found '
            f'{[file.name for file in found] or "none"}; pass the config file and '
            'the checkpoint separately'
        )
    return found[0]


def _anchor_paths(node: Any, folder: Path) -> None:
    """Make relative tokenizer and language-model paths absolute where ``folder`` has them."""
    for part in parts_of(node):
        for key in _PATH_KEYS:
            value = part.get(key)
            if not isinstance(value, str) or Path(value).is_absolute():
                continue
            if (folder / value).exists():
                part[key] = str(folder / value)
