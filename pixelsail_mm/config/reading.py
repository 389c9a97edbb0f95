"""From a config file and overrides to the config that runs."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import import_modules_from_strings

from pixelsail_mm.config.benchmark import MODEL_CONFIG, is_benchmark, with_model
from pixelsail_mm.config.options import parse_options
from pixelsail_mm.config.swapping import marking_swaps, settle
from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.registry import SCOPE
from pixelsail_mm.type_names import name_types

# Configs in front of which this stands come with the package.
_SHIPPED = f'{SCOPE}::'


def read_config(
    path: str | os.PathLike, options: list[str] | None = None, model: str | None = None
) -> Config:
    """Read a config file, merge a benchmark's with its model's, apply ``--cfg-options``.

    Modules of ``custom_imports`` are imported, a project's from its own folder. A part whose
    ``type`` is overridden inherits what its new type takes
    (:mod:`pixelsail_mm.config.swapping`). Classes as types become their names.

    Args:
        path: The config file, or ``pixelsail_mm::FOLDER/NAME.py`` for one that ships.
        options: ``key=value`` strings.
        model: Config file of the model, for the config of a benchmark.

    Raises:
        ConfigError: No such file, an option whose first key is unknown, a ``model`` for a config
            that has its own, or a module that cannot be imported.
    """
    with marking_swaps():
        cfg = _load(path, f'config {path}')
        if is_benchmark(cfg):
            chosen = model or cfg[MODEL_CONFIG]
            cfg = with_model(cfg, _load(chosen, f'--model {chosen}'))
        elif model is not None:
            raise ConfigError(
                f'--model: {path} has a model of its own; it is for the configs of '
                'configs/benchmarks'
            )
        _override(cfg, options or [])
    import_custom_modules(cfg)
    name_types(cfg)
    settle(cfg)
    return cfg


def _load(path: str | os.PathLike, name: str) -> Config:
    file = Path(_shipped_path(str(path)) or path).expanduser()
    if not file.is_file():
        raise ConfigError(f'{name}: no such file (see configs/ for those that exist)')
    _find_project(file.resolve())
    with _finding_shipped():
        return Config.fromfile(str(file), import_custom_modules=False)


def _override(cfg: Config, options: list[str]) -> None:
    overrides = parse_options(options)
    for key in overrides:
        head = key.split('.')[0]
        if head in cfg or head in _keys_of_runs():
            continue
        known = sorted(cfg.keys() | _keys_of_runs())
        close = difflib.get_close_matches(head, known, n=1)
        hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(known)}'
        raise ConfigError(f'--cfg-options {key}: the config has no key {head!r}; {hint}')
    try:
        cfg.merge_from_dict(overrides)
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(f'--cfg-options {" ".join(options)}: {error}') from error


@cache
def _keys_of_runs() -> set[str]:
    """Keys that a run may add although the config file does not have them."""
    from mmengine.runner import FlexibleRunner  # takes a second

    # The run decides itself on its strategy, and the command line on its launcher.
    own = {'cfg', 'strategy', 'launcher'}
    return {'custom_imports', 'deepspeed', *signature(FlexibleRunner).parameters} - own


def import_custom_modules(cfg: Config) -> None:
    """Import the modules that a config names in ``custom_imports``.

    Raises:
        ConfigError: One cannot be imported.
    """
    if not cfg.get('custom_imports'):
        return
    try:
        import_modules_from_strings(**cfg.custom_imports)
    except (ImportError, TypeError) as error:
        cause = f' ({first_line(error.__context__)})' if error.__context__ else ''
        raise ConfigError(
            f'{cfg.filename}: custom_imports: {first_line(error)}{cause}; install the module, put '
            'the folder that holds it on PYTHONPATH, or keep the config in configs/ beside '
            'it'
        ) from error


def _find_project(file: Path) -> None:
    """Let a config in ``PROJECT/configs`` import the packages in ``PROJECT``."""
    folders = [folder.parent for folder in file.parents if folder.name == 'configs']
    if not folders:
        return
    packages = sorted(init.parent.name for init in folders[0].glob('*/__init__.py'))
    new = [name for name in packages if name.isidentifier() and find_spec(name) is None]
    if new:
        sys.path.append(str(folders[0]))
        print_log(
            f'{file.name} belongs to the project {folders[0]}: its packages '
            f'({", ".join(new)}) can be imported',
            logger='current',
        )


def _shipped_path(name: str) -> str | None:
    """Path of ``pixelsail_mm::FOLDER/NAME.py``; None for another name."""
    if not name.startswith(_SHIPPED):
        return None
    return str(Path(__file__).parents[1] / '.mim' / 'configs' / name.removeprefix(_SHIPPED))


@contextmanager
def _finding_shipped() -> Iterator[None]:
    """Let ``_base_ = 'pixelsail_mm::...'`` work for every kind of installation.

    MMEngine looks beside the metadata of the package, where an editable installation has no code.
    """
    original = Config.__dict__['_get_cfg_path']

    def find(name: str, child: str) -> tuple[str, str | None]:
        shipped = _shipped_path(name)
        return (shipped, None) if shipped else original.__func__(name, child)

    Config._get_cfg_path = staticmethod(find)
    try:
        yield
    finally:
        Config._get_cfg_path = original
