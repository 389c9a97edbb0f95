"""Count skipped samples across the worker processes of a data loader."""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from collections import Counter

_MAX_REASON = 160


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(path):
        os.remove(path)


class SkipCounter:
    """Counter of reasons that every process adds to and every process can read.

    A worker has its own copy of the dataset, so a plain counter would stay empty in the main
    process. Reasons are appended to one temporary file instead: short appends are atomic, no lock
    is needed, and it works for forked and for spawned workers. The file goes when the counter goes.

    Args:
        mask_numbers: Write ``#`` for numbers, so that equal faults count together.
    """

    def __init__(self, mask_numbers: bool = True) -> None:
        self._mask_numbers = mask_numbers
        self._known: set[str] = set()
        handle, self._path = tempfile.mkstemp(prefix='pixelsail_skipped_', suffix='.txt')
        os.close(handle)
        weakref.finalize(self, _remove, self._path, os.getpid())

    def add(self, reason: str, times: int = 1) -> None:
        """Count what is wrong."""
        line = ' '.join(reason.split())
        if self._mask_numbers:
            line = re.sub(r'\d+', '#', line)[:_MAX_REASON]
        # JSON can hold halves of characters, which no file can.
        with open(self._path, 'a', encoding='utf-8', errors='backslashreplace') as file:
            file.write(f'{times}\t{line}\n')

    def is_first(self, reason: str) -> bool:
        """Tell whether no process has counted a reason yet; asks the others once per reason."""
        if reason in self._known:
            return False
        self._known.add(reason)
        return reason not in self.counts()

    def counts(self) -> Counter:
        """Reasons and their numbers, of all processes."""
        counts: Counter = Counter()
        if not os.path.exists(self._path):  # a copy that outlived the counter it was made of
            return counts
        with open(self._path, encoding='utf-8') as file:
            for line in file:
                times, _, reason = line.rstrip('\n').partition('\t')
                counts[reason] += int(times)
        return counts
