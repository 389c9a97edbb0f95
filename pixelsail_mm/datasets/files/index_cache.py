"""Items of a dataset as bytes: built one by one, and kept on disk from run to run.

Parsing millions of annotations takes a minute and, as Python objects, many gigabytes. Items are
serialised as they come, and a cached index is mapped into memory, shared by all processes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import inspect
import json
import logging
import os
import pickle
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mmengine.logging import print_log

from pixelsail_mm.datasets.files.restricted_pickle import PlainUnpickler

FORMAT_VERSION = 1
_DATA, _ENDS, _META = 'items.bin', 'ends.npy', 'meta.json'
_BUFFERED = 1 << 20  # one pickler and large writes take a third off the time of writing


def write_items(items: Iterable[Any], file: BinaryIO) -> np.ndarray:
    """Serialise items one after the other.

    Args:
        items: Plain containers.
        file: Where the bytes go.

    Returns:
        int64 (n,) position behind the last byte of each item.
    """
    ends, written = array('q'), 0
    buffer = BytesIO()
    pickler = pickle.Pickler(buffer, protocol=4)
    for item in items:
        pickler.dump(item)
        pickler.clear_memo()  # each item is a pickle of its own
        position = buffer.tell()
        ends.append(written + position)
        if position > _BUFFERED:
            written += file.write(buffer.getbuffer())
            buffer.seek(0)
            buffer.truncate()
    file.write(buffer.getbuffer())
    return np.array(ends, np.int64)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the collector from walking millions of parsed containers again and again.

    They hold no cycles: each goes as soon as nothing refers to it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def items_in_memory(items: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Give (uint8 bytes of all items, int64 ends), see :func:`write_items`."""
    buffer = BytesIO()
    ends = write_items(items, buffer)
    return np.frombuffer(buffer.getbuffer(), np.uint8), ends


def read_item(data: np.ndarray, ends: np.ndarray, index: int) -> Any:
    """Give item ``index`` of what :func:`write_items` made; runs no code from the bytes."""
    start = int(ends[index - 1]) if index else 0
    return PlainUnpickler(BytesIO(data[start : int(ends[index])])).load()


def fingerprint(kind: type, options: Mapping[str, Any], paths: Iterable[str]) -> dict:
    """Compute a fingerprint of everything an index depends on; equal ones mean an equal index.

    Args:
        kind: Class of the reader. Its source and that of all readers of this package count, so
            that an index never outlives the code that made it.
        options: Everything that is set on the reader.
        paths: Files and folders that it reads. Their sizes and times of change count, not their
            content. A folder's time changes with the names in it.

    Returns:
        JSON-able dict.
    """
    package = Path(__file__).parents[1]
    own = {
        str(path)
        for room in ('', 'readers', 'files', 'mixing')
        for path in (package / room).glob('*.py')
    }
    sources = sorted(own | {inspect.getsourcefile(kind) or ''} - {''})
    code = hashlib.sha256(b''.join(Path(path).read_bytes() for path in sources)).hexdigest()
    files = {}
    for path in sorted(paths):
        state = os.stat(path)
        files[path] = [state.st_size, state.st_mtime_ns]
    return json.loads(
        json.dumps(
            dict(
                format=FORMAT_VERSION,
                reader=f'{kind.__module__}.{kind.__qualname__}',
                code=code,
                options=dict(options),
                files=files,
            ),
            sort_keys=True,
            default=_plain,
        )
    )


def _plain(value: Any) -> Any:
    """Stand for an object that is an option by what it holds, not by where it lies."""
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return [type(value).__qualname__, vars(value)] if hasattr(value, '__dict__') else repr(value)


class IndexCache:
    """A folder of indices, one per fingerprint.

    Indices appear under their final name when they are complete, so any number of processes may
    build the same one at once and an interrupted run leaves nothing that looks valid.

    Args:
        folder: Where the indices are; made when the first one is stored.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def _entry(self, identity: dict) -> Path:
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.folder / f'{identity["reader"].rsplit(".", 1)[-1]}-{digest}'

    def load(self, identity: dict) -> tuple[np.ndarray, np.ndarray, dict] | None:
        """Map an index into memory.

        Args:
            identity: See :func:`fingerprint`.

        Returns:
            (uint8 bytes, int64 ends, what ``store`` was given as ``extra``), or None if there is
            none of this fingerprint or it is damaged.
        """
        entry = self._entry(identity)
        try:
            meta = json.loads((entry / _META).read_text())
            ends = np.load(entry / _ENDS)
            data = np.memmap(entry / _DATA, np.uint8, 'r')
            stored, extra = meta['fingerprint'], meta['extra']
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError, KeyError, TypeError, RecursionError) as error:
            print_log(
                f'index {entry} is damaged ({error}) and will be built again',
                'current',
                logging.WARNING,
            )
            return None
        if stored != identity or not len(ends) or len(data) != ends[-1]:
            return None
        return data, ends, extra

    def store(
        self, identity: dict, items: Callable[[], Iterable[Any]], extra: Callable[[], dict]
    ) -> None:
        """Build an index on disk; nothing is kept if there are no items.

        Args:
            identity: See :func:`fingerprint`.
            items: Gives the items, plain containers that are consumed one by one.
            extra: Called when all items are consumed; gives a JSON-able dict kept with them.

        Raises:
            OSError: The folder cannot be written.
        """
        entry = self._entry(identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f'.{entry.name}.', dir=self.folder))
        try:
            with open(unfinished / _DATA, 'wb') as file:
                ends = write_items(items(), file)
            if not len(ends):
                return
            np.save(unfinished / _ENDS, ends)
            (unfinished / _META).write_text(json.dumps(dict(fingerprint=identity, extra=extra())))
            shutil.rmtree(entry, ignore_errors=True)
            try:
                unfinished.rename(entry)
            except OSError:  # another process was faster; its index is the same
                if not (entry / _META).is_file():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
