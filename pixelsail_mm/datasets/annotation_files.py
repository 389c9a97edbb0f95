"""Checked reading of annotation files."""

from __future__ import annotations

import json
import os
from typing import Any, Iterable, Iterator, Mapping

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


_CHUNK = 1 << 22
_BLANK = ' \t\n\r'
_ENDS = frozenset(_BLANK + ',]')


def iter_json_list(path: str, key: str) -> Iterator[Any]:
    """Read a JSON list entry by entry, so that a file of gigabytes needs the memory of one entry.

    Args:
        path: The file, in UTF-8 (a byte-order mark is ignored).
        key: Config key that names it.

    Yields:
        The entries in their order.

    Raises:
        AnnotationError: Not a JSON list, damaged or cut off; names the entry.
    """
    decode = json.JSONDecoder().raw_decode
    with open(path, encoding='utf-8-sig') as file:
        stream = _JSONStream(file, path, key)
        if stream.skip_blanks() != '[':
            raise AnnotationError(path, key, 'must hold a JSON list; is it the right file?')
        stream.position += 1
        number, closing = 0, stream.skip_blanks() == ']'
        while not closing:
            yield stream.entry(decode, number)
            number += 1
            separator = stream.skip_blanks()
            if separator not in (',', ']'):
                stream.fail(number, 'expected a comma or the end of the list')
            closing = separator == ']'
            if not closing:
                stream.position += 1
                stream.skip_blanks()
        stream.position += 1
        if stream.skip_blanks():
            stream.fail(number, 'text behind the end of the list')


class _JSONStream:
    """A window of text over an open file, from which JSON values are taken one by one."""

    def __init__(self, file, path: str, key: str) -> None:
        self._file, self._path, self._key = file, path, key
        self._text, self.position = '', 0

    def _more(self) -> bool:
        """Append the next piece of the file to what is left; False at its end."""
        # Pieces grow with the entry, so that one huge entry is not scanned again and again.
        left = self._text[self.position:]
        try:
            piece = self._file.read(max(_CHUNK, len(left)))
        except UnicodeDecodeError as error:
            raise AnnotationError(self._path, self._key, f'not UTF-8 ({error}); download or '
                                  'generate it again') from error
        self._text, self.position = left + piece, 0
        return bool(piece)

    def skip_blanks(self) -> str:
        """Move to the next character that is not blank and give it; empty at the end."""
        while True:
            while self.position < len(self._text):
                character = self._text[self.position]
                if character not in _BLANK:
                    return character
                self.position += 1
            if not self._more():
                return ''

    def entry(self, decode, number: int) -> Any:
        """Decode the value at the current position."""
        while True:
            try:
                value, end = decode(self._text, self.position)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    self.fail(number, str(error))
                continue
            if self._text[end:end + 1] not in _ENDS:
                # Perhaps a number that the end of the window cuts: "1", "1." or "1e" of "1e5".
                length = end - self.position
                if self._more():
                    continue
                end = length
            self.position = end
            return value

    def fail(self, number: int, reason: str) -> None:
        """Raise the error that names the entry."""
        raise AnnotationError(self._path, f'[{number}]', f'not valid JSON ({reason}); download or '
                              'generate the file again')


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
