"""The four parts of XTuner 0.2 that this package uses; nothing else may import XTuner.

Its own packages import far more than these parts need: twenty seconds of libraries on two cores,
and with Transformers 5 a name that is gone (``is_safetensors_available``). So each part is read
from its own file, under its own module name, and the ``__init__`` files around it stay unread.

``TrainLoop``, ``LengthGroupedSampler`` and ``PROMPT_TEMPLATE`` are read when they are first asked
for: ``from pixelsail_mm.compat.xtuner import TrainLoop``.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from pixelsail_mm.errors import ConfigError

_HOMES = dict(
    TrainLoop='xtuner.engine.runner.loops',
    LengthGroupedSampler='xtuner.dataset.samplers.length_grouped',
    PROMPT_TEMPLATE='xtuner.utils.templates',
)


def _folder() -> Path:
    """Folder of the installed package, which is not imported."""
    spec = find_spec('xtuner')
    if spec is None:
        raise ConfigError(
            'XTuner is not installed: pip install --no-deps -r requirements/mminstall.txt'
        )
    return Path(spec.submodule_search_locations[0])


def __getattr__(name: str) -> Any:
    """Give a part of XTuner.

    Raises:
        ConfigError: XTuner is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    home = _HOMES[name]
    if home not in sys.modules:
        path = _folder().joinpath(*home.split('.')[1:]).with_suffix('.py')
        spec = spec_from_file_location(home, path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        # Whoever imports XTuner as well gets the same classes.
        sys.modules[home] = module
    return getattr(sys.modules[home], name)


def deepspeed_preset(name: str) -> Path:
    """File of a DeepSpeed configuration.

    Args:
        name: E.g. ``'zero2'`` or ``'zero3_offload'``.

    Raises:
        ConfigError: XTuner is not installed.
    """
    return _folder() / 'configs' / 'deepspeed' / f'deepspeed_{name}.json'
