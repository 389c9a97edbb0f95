"""Stand-in for ``mmcv._ext``, MMCV's compiled operators, where ``mmcv-lite`` is installed.

MMDetection's models ask for the compiled module while they are imported, although the parts this
package uses (losses, ``mmcv.ops.point_sample``) are pure PyTorch. Compiling MMCV takes half an hour
and is the most frequent install failure of its users, so the import is satisfied here and only a
*call* of a compiled operator fails, with the remedy.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODULE_NAME = 'mmcv._ext'
# mmcv.utils.collect_env calls these two whenever mmcv.ops can be imported.
_INFO_FUNCTIONS = ('get_compiler_version', 'get_compiling_cuda_version')


class _MissingOps(ModuleType):
    """Module in which every public name is a function that raises when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        if name in _INFO_FUNCTIONS:
            return lambda: 'n/a (mmcv-lite)'
        return _raiser(name)


def _raiser(name: str) -> Callable[..., Any]:

    def missing_op(*args, **kwargs):
        raise RuntimeError(
            f"the compiled MMCV operator '{name}' was called, but the installed MMCV has no "
            'compiled operators (mmcv-lite). Install the full build: pip uninstall mmcv-lite, then '
            '\'mim install "mmcv>=2.1,<2.2"\' or build it with MMCV_WITH_OPS=1; or choose a '
            'component that does not need this operator'
        )

    missing_op.__name__ = missing_op.__qualname__ = name
    return missing_op


def ensure_mmcv_ops() -> bool:
    """Make ``import mmcv.ops`` and ``import mmdet.models`` work without compiled operators.

    Does nothing when compiled operators are installed, when MMCV is not installed at all, or when
    it ran before. It imports nothing, so it costs about a millisecond; it must run before the
    first import of ``mmcv.ops``, and importing :mod:`pixelsail_mm` runs it.

    Returns:
        bool: Whether the stand-in is in place.
    """
    if MODULE_NAME in sys.modules:
        return isinstance(sys.modules[MODULE_NAME], _MissingOps)
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv is None or PathFinder.find_spec(MODULE_NAME, mmcv.submodule_search_locations):
        return False
    module = _MissingOps(MODULE_NAME, doc=__doc__)
    # A spec without a loader: mmcv.utils.check_ops_exist() then answers False, as it should.
    module.__spec__ = ModuleSpec(MODULE_NAME, loader=None)
    sys.modules[MODULE_NAME] = module
    return True
