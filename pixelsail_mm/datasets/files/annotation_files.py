"""Checked reading of annotation files.

In all functions ``path`` (or ``file``) is the annotation file, ``key`` the config key that names
it, and ``where`` a position in it, e.g. ``'annotations[3]'``: errors name them.
"""

from __future__ import annotations

import json
import os
import os.path as osp
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pixelsail_mm.errors import AnnotationError, BadSampleError, MissingFilesError


def find_file(path: str) -> str:
    """Find a file whatever the case of the letters in its name.

    Releases of one data set differ in it: MUSE's file is ``MUSE_train.json`` or
    ``muse_train.json``.

    Args:
        path: The file; it need not exist.

    Returns:
        The path, or the only file of its folder whose name differs in case alone.
    """
    if not path or os.path.exists(path):
        return path
    folder, name = osp.split(path)
    try:
        similar = [other for other in os.listdir(folder or '.') if other.lower() == name.lower()]
    except OSError:
        return path
    return osp.join(folder, similar[0]) if len(similar) == 1 else path


def require_paths(paths: Mapping[str, str], dataset: str) -> None:
    """Check that paths exist.

    Args:
        paths: Config key to path.
        dataset: Name of the dataset, or what else names them, for the message.

    Raises:
        MissingFilesError: Some do not; names every one of them.
    """
    missing = [(key, path) for key, path in paths.items() if not os.path.exists(path)]
    if missing:
        raise MissingFilesError(missing, dataset)


def load_json(
    path: str, key: str, kind: type, object_hook: Callable[[dict], Any] | None = None
) -> Any:
    """Read a JSON file whose content is a ``kind`` (``list`` or ``dict``).

    ``object_hook`` gives what takes the place of each dict, as in :func:`json.load`.

    Raises:
        AnnotationError: Not JSON, or of another type.
    """
    # Not ijson: as slow on a table of 200 MB whose entries are kept, and it has no object_hook.
    with open(path, 'rb') as file:
        try:
            content = json.load(file, object_hook=object_hook)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(
                path, key, f'not valid JSON ({error}); download or generate it again'
            ) from error
    if not isinstance(content, kind):
        raise AnnotationError(
            path,
            key,
            f'must hold a JSON {kind.__name__}, got '
            f'{type(content).__name__}; is it the right file?',
        )
    return content


def load_tables(
    path: str, key: str, tables: Sequence[str], object_hook: Callable[[dict], Any] | None = None
) -> dict[str, Any]:
    """Read an annotation file of COCO's kind: a dict of lists, of which ``tables`` will be read.

    Raises:
        AnnotationError: Not a JSON dict, or a table is missing or no list.
    """
    content = load_json(path, key, dict, object_hook)
    require_keys(content, tables, path, key)
    for name in tables:
        if not isinstance(content[name], list):
            raise AnnotationError(
                path,
                name,
                f'must be a list, got {type(content[name]).__name__}; is it the right file?',
            )
    return content


def rows_by_image(
    annotations: list, keys: Sequence[str], path: str
) -> dict[str, list[tuple[str, dict]]]:
    """Group the annotations of a file of COCO's kind by their images.

    Returns:
        ``str(image_id)`` to (position in the file, annotation), in the order of the file.

    Raises:
        AnnotationError: An annotation lacks ``image_id`` or one of ``keys``.
    """
    groups = defaultdict(list)
    for i, annotation in enumerate(annotations):
        where = f'annotations[{i}]'
        require_keys(annotation, ('image_id', *keys), path, where)
        groups[str(annotation['image_id'])].append((where, annotation))
    return groups


# Ours instead of ijson: 136 MB/s, and 89 with its C backend, on 200 MB of LLaVA's conversations.
_CHUNK = 1 << 18  # characters; what fits the processor's cache is read in a third of the time
_BLANK = ' \t\n\r'
_ENDS = frozenset(_BLANK + ',]')


def iter_json_list(path: str, key: str) -> Iterator[Any]:
    """Read a JSON list entry by entry, so that a file of gigabytes needs the memory of one entry.

    The file is in UTF-8; a byte-order mark is ignored.

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


def iter_json(path: str, key: str) -> Iterator[Any]:
    """Read the entries of a JSON list or, of a file ``*.jsonl``, its lines."""
    read = iter_json_lines if os.fspath(path).endswith('.jsonl') else iter_json_list
    return read(path, key)


def iter_json_lines(path: str, key: str) -> Iterator[Any]:
    """Read a file of one JSON value per line, in UTF-8 as above; blank lines do not count.

    Raises:
        AnnotationError: Not UTF-8, or a line is not JSON; names the line.
    """
    with open(path, encoding='utf-8-sig') as file:
        try:
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise AnnotationError(
                        path,
                        f'line {number}',
                        f'not valid JSON ({error}); download or generate the file again',
                    ) from error
        except UnicodeDecodeError as error:
            raise AnnotationError(
                path, key, f'not UTF-8 ({error}); download or generate it again'
            ) from error


class _JSONStream:
    """A window of text over an open file, from which JSON values are taken one by one."""

    def __init__(self, file, path: str, key: str) -> None:
        self._file, self._path, self._key = file, path, key
        self._text, self.position = '', 0

    def _more(self) -> bool:
        """Append the next piece of the file to what is left; False at its end."""
        # Pieces grow with the entry, so that one huge entry is not scanned again and again.
        left = self._text[self.position :]
        try:
            piece = self._file.read(max(_CHUNK, len(left)))
        except UnicodeDecodeError as error:
            raise AnnotationError(
                self._path, self._key, f'not UTF-8 ({error}); download or generate it again'
            ) from error
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
            if self._text[end : end + 1] not in _ENDS:
                # Perhaps a number that the end of the window cuts: "1", "1." or "1e" of "1e5".
                length = end - self.position
                if self._more():
                    continue
                end = length
            self.position = end
            return value

    def fail(self, number: int, reason: str) -> None:
        """Raise the error that names the entry."""
        raise AnnotationError(
            self._path,
            f'[{number}]',
            f'not valid JSON ({reason}); download or generate the file again',
        )


def require_keys(entry: Any, keys: Iterable[str], path: str, where: str) -> None:
    """Check that an annotation entry is a dict with the keys that will be read.

    Raises:
        AnnotationError: It is not.
    """
    if not isinstance(entry, dict):
        raise AnnotationError(
            path, where, f'must be a dict, got {type(entry).__name__}; is it the right file?'
        )
    missing = []
    for key in keys:  # millions of entries pass here, and a comprehension takes twice as long
        if key not in entry:
            missing.append(key)
    if missing:
        raise AnnotationError(
            path, where, f'lacks {missing}; has {list(entry)[:12]}; is it the right file?'
        )


def image_fields(
    entry: Mapping[str, Any], key: str, folder: str, file: str, where: str
) -> dict[str, Any]:
    """Read and check the image fields of an entry, whose ``key`` is the name of its file.

    Returns:
        dict with ``img_path`` and, if the entry states them, ``height`` and ``width``.

    Raises:
        BadSampleError: The name is no text, or a side is no whole number above 0.
    """
    name = entry[key]
    if not isinstance(name, str) or not name:
        raise BadSampleError(
            file, f'{where}.{key}', f'must be the name of the image file, got {name!r:.60}'
        )
    return dict(img_path=osp.join(folder, name), **stated_size(entry, file, where))


def stated_size(entry: Mapping[str, Any], file: str, where: str) -> dict[str, int]:
    """Size of the image that an annotation entry states.

    Some files, such as Flickr's grounded captions, write the numbers as text.

    Returns:
        dict with those of ``height`` and ``width`` that are stated.

    Raises:
        BadSampleError: A side is no whole number above 0.
    """
    sides = {}
    for side in ('height', 'width'):
        stated = entry.get(side)
        if stated is None:
            continue
        is_text = isinstance(stated, str) and stated.strip().isdecimal()
        size = int(stated) if is_text else stated
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise BadSampleError(
                file,
                f'{where}.{side}',
                'must be the number of pixels of the '
                f"image's {side}, got {stated!r:.60}; correct it or leave it out",
            )
        sides[side] = size
    return sides
