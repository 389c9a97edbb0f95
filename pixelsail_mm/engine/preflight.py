"""Checks that take a second before a training that takes days."""

import os
from typing import Iterator, Sequence, Tuple

from mmengine.config import Config

from pixelsail_mm.engine.errors import ConfigError


def _paths(node, where: str) -> Iterator[Tuple[str, str]]:
    """Find (config key, path) of the files and folders that a dataset config names."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _paths(item, f'{where}[{index}]')
    if not isinstance(node, dict):
        return
    root = node.get('data_root') or ''
    for key, value in node.items():
        name = f'{where}.{key}'
        if isinstance(value, str) and key == 'data_root' and value:
            yield name, value
        elif isinstance(value, str) and key.endswith(('ann_file', '_file', '_path')) and value:
            yield name, os.path.join(root, value)
        elif key == 'data_prefix' and isinstance(value, dict):
            yield from ((f'{name}.{kind}', os.path.join(root, path))
                        for kind, path in value.items() if path)
        else:
            yield from _paths(value, name)


def check_files(cfg: Config, loaders: Sequence[str]) -> None:
    """List every missing file of the data sets at once, and missing starting weights.

    Args:
        cfg: The config.
        loaders: Keys of the data loaders that the run uses.

    Raises:
        ConfigError: Something is missing; the message lists all of it with its config keys.
    """
    wanted = [item for loader in loaders for item in _paths(cfg.get(loader), loader)]
    if cfg.get('load_from'):
        wanted.append(('load_from', cfg.load_from))
    missing = [(key, path) for key, path in wanted
               if '://' not in path and not os.path.exists(os.path.expanduser(path))]
    if missing:
        lines = '\n'.join(f'  {path}   ({key})' for key, path in missing)
        raise ConfigError(f'{len(missing)} files or folders of the config are missing:\n{lines}\n'
                          'correct these keys (or --cfg-options), or fetch the data first '
                          '(docs on data preparation)')
