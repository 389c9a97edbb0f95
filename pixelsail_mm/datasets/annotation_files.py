"""Checked reading of annotation files."""

from __future__ import annotations

import json
import os
from typing import Any, Iterable, Mapping

from pixelsail_mm.datasets.errors import AnnotationError


class MissingFilesError(FileNotFoundError):
    """Files or folders that a dataset's config names do not exist.

    Args:
        missing: (config key, path) pairs, all of them.
        dataset: Name of the dataset.
    """

    def __init__(self, missing: Iterable[tuple[str, str]], dataset: str) -> None:
        self.missing = list(missing)
        self.dataset = dataset
        lines = '\n'.join(f'  {path}   ({key})' for key, path in self.missing)
        super().__init__(f'{dataset}: {len(self.missing)} files or folders are missing:\n{lines}\n'
                         'correct these keys (relative paths start at data_root), or fetch or '
                         'generate the data first')

    def __reduce__(self):
        """Rebuild from the arguments, so that it crosses worker process borders."""
        return type(self), (self.missing, self.dataset)


def require_paths(paths: Mapping[str, str], dataset: str) -> None:
    """Check that paths exist.

    Args:
        paths: Config key to path.
        dataset: Name of the dataset, for the message.

    Raises:
        MissingFilesError: Some do not; names every one of them.
    """
    missing = [(key, path) for key, path in paths.items() if not os.path.exists(path)]
    if missing:
        raise MissingFilesError(missing, dataset)


def load_json(path: str, key: str, kind: type) -> Any:
    """Read a JSON annotation file.

    Args:
        path: The file.
        key: Config key that names it.
        kind: Type the content must have, ``list`` or ``dict``.

    Returns:
        The content.

    Raises:
        AnnotationError: Not JSON, or of another type.
    """
    with open(path, 'rb') as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(path, key, f'not valid JSON ({error}); download or generate it '
                                  'again') from error
    if not isinstance(content, kind):
        raise AnnotationError(path, key, f'must hold a JSON {kind.__name__}, got '
                              f'{type(content).__name__}; is it the right file?')
    return content


def require_keys(entry: Any, keys: Iterable[str], path: str, where: str) -> None:
    """Check that an annotation entry is a dict with the keys that will be read.

    Args:
        entry: The entry.
        keys: Required keys.
        path: Annotation file, for the message.
        where: Position in the file, e.g. ``'annotations[3]'``.

    Raises:
        AnnotationError: It is not.
    """
    if not isinstance(entry, dict):
        raise AnnotationError(path, where, f'must be a dict, got {type(entry).__name__}; is it the '
                              'right file?')
    missing = [key for key in keys if key not in entry]
    if missing:
        raise AnnotationError(path, where, f'lacks {missing}; has {sorted(entry)[:12]}; is it the '
                              'right file?')
