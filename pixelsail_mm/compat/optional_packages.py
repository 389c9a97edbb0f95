"""Keep MMEngine from importing optional packages that take seconds and are rarely used.

MMEngine imports bitsandbytes (and with it all of ``torch._inductor``), Transformers and DeepSpeed
wherever they are installed, only to offer their optimizers and its DeepSpeed strategy. Here these
modules of MMEngine are imported as if the packages were absent. What they left out follows when it
is needed: optimizers by :func:`register_late_optimizers`, DeepSpeed when the strategy uses it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_BUILDER, _STRATEGY = 'mmengine.optim.optimizer.builder', 'mmengine._strategy.deepspeed'
_OPTIONAL = {_BUILDER: ('bitsandbytes', 'transformers'), _STRATEGY: ('deepspeed',)}


class _Later(ModuleType):
    """Stands for a package inside one module; imports it when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


class _LoaderWithout(Loader):
    """Runs a module while some packages cannot be imported.

    Args:
        loader: The module's own loader.
        packages: Names; those that are loaded already stay.
    """

    def __init__(self, loader: Loader, packages: tuple[str, ...]) -> None:
        self._loader, self._packages = loader, packages

    def create_module(self, spec) -> ModuleType | None:
        """Leave it to the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code; a name that it keeps for an absent package gets the package."""
        absent = set(self._packages) - set(sys.modules)
        sys.modules.update(dict.fromkeys(absent))  # None: an import fails as if not installed
        try:
            self._loader.exec_module(module)
        finally:
            for name in absent:
                del sys.modules[name]
        for name in absent & set(vars(module)):
            if find_spec(name) is not None:
                setattr(module, name, _Later(name))


class _Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _OPTIONAL:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _LoaderWithout(spec.loader, _OPTIONAL[name])
        return spec


def postpone_optional_packages() -> None:
    """Make MMEngine's modules import without the optional packages; imports nothing itself.

    Importing :mod:`pixelsail_mm` runs it. Modules of MMEngine that are loaded already stay.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register_late_optimizers() -> None:
    """Register the optimizers of bitsandbytes and Transformers (``Adafactor``), if installed."""
    from mmengine.optim.optimizer import builder

    if not builder.TRANSFORMERS_OPTIMIZERS:
        builder.TRANSFORMERS_OPTIMIZERS = builder.register_transformers_optimizers()
    if not builder.BITSANDBYTES_OPTIMIZERS:
        builder.BITSANDBYTES_OPTIMIZERS = builder.register_bitsandbytes_optimizers()
