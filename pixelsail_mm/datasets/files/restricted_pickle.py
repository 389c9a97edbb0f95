"""Read pickled annotations without running code.

The public RefCOCO files ``refs(*).p`` are pickles, and a pickle can run any code while it is read.
"""

from __future__ import annotations

import pickle
from os import PathLike
from typing import Any

from pixelsail_mm.errors import AnnotationError

# Containers that older pickle protocols spell as a call of a builtin.
_ALLOWED = {
    (module, name): kind
    for module in ('builtins', '__builtin__')
    for name, kind in (('set', set), ('frozenset', frozenset))
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickler of plain containers, text, numbers and None; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything but plain containers."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f'it wants to use {module}.{name}')
        return _ALLOWED[module, name]


def load_plain_pickle(path: str | PathLike, key: str = 'split_file') -> Any:
    """Read a pickle that holds plain containers, text, numbers and None only.

    Args:
        path: The file. Strings written by Python 2 are read as UTF-8.
        key: Config key to name in errors.

    Returns:
        The content.

    Raises:
        AnnotationError: The pickle asks for any class or function, or is damaged. Nothing of it
            was run.
    """
    with open(path, 'rb') as file:
        try:
            return PlainUnpickler(file, encoding='utf-8', errors='replace').load()
        except pickle.UnpicklingError as error:
            raise AnnotationError(
                str(path),
                key,
                f'refused to unpickle: {error}. Annotations hold '
                'lists, dicts, text and numbers only; get the file from its '
                'original source',
            ) from error
        except (
            EOFError,
            IndexError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            MemoryError,
            OverflowError,
        ) as error:
            raise AnnotationError(
                str(path),
                key,
                f'damaged pickle ({type(error).__name__}: {error}); download it again',
            ) from error
