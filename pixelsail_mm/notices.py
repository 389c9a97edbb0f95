"""Warnings that are given once, however often their cause occurs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from functools import lru_cache

from mmengine.logging import print_log


@lru_cache(maxsize=4096)
def warn_once(text: str) -> None:
    """Log a warning, unless this process logged the same text before."""
    print_log(text, logger='current', level=logging.WARNING)


class CountedWarnings:
    """Log the 1st, 10th, 100th, ... warning of each kind with its number.

    For many inputs whose warnings differ in sizes or words, so that each is said for the first
    time. Those of one kind have the same text up to the first digit or quotation mark.
    """

    def __init__(self) -> None:
        self._counts: Counter = Counter()

    def __call__(self, text: str) -> None:
        """Count a warning, and log it if it is one of those."""
        kind = re.split(r'[\d\'"]', text, maxsplit=1)[0]
        self._counts[kind] += 1
        number = str(self._counts[kind])
        if number == '1':
            more = 'further ones of this kind are counted'
        else:
            more = f'number {number} of this kind'
        if not number[1:].strip('0') and number[0] == '1':
            print_log(f'{text} ({more})', logger='current', level=logging.WARNING)
