"""Stand-in for DeepSpeed's 1-bit optimizers, which DeepSpeed 0.19 no longer has.

MMEngine's strategy imports them only to register their names.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

from pixelsail_mm.errors import ConfigError

MODULE_NAME = 'deepspeed.runtime.fp16.onebit'


def _missing(name: str) -> type:

    def refuse(self, *args, **kwargs):
        raise ConfigError(
            f'optimizer.type={name!r}: DeepSpeed 0.19 and later have no 1-bit '
            'optimizers; use AdamW, or install deepspeed<0.19'
        )

    return type(name, (), dict(__init__=refuse))


def ensure_onebit_optimizers() -> None:
    """Make ``import deepspeed.runtime.fp16.onebit`` work; imports DeepSpeed.

    A real module is left alone. The stand-in's classes raise ``ConfigError`` when they are built.
    """
    if MODULE_NAME in sys.modules or find_spec(MODULE_NAME) is not None:
        return
    module = ModuleType(MODULE_NAME, doc=__doc__)
    for name in ('OnebitAdam', 'OnebitLamb', 'ZeroOneAdam'):
        setattr(module, name, _missing(name))
    sys.modules[MODULE_NAME] = module
