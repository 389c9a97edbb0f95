"""How the fuzz tests run their cases: how many, within which bounds, and what may come out."""

from __future__ import annotations

import random
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.errors import UserError

#: Processor time of one case; the slowest valid ones take a tenth of a second.
SECONDS = 5
#: Address space that one case may take beyond what the process has.
MEGABYTES = 600


class Unsaid(dict):
    """A dict of valid input that a failing case does not print."""

    def __repr__(self) -> str:
        return f'{len(self)} entries'


class TooSlowError(BaseException):
    """A case takes too long; no handler of the code under test catches it."""


def fuzz(test: Callable) -> Callable:
    """Run a test with a ``seed`` for each case, as many as the profile ``fuzz`` says.

    The seed alone makes the case, so a failure is repeated with ``@example(seed=...)``.
    """
    return given(seed=st.integers(0, 2**32 - 1))(settings.get_profile('fuzz')(test))


def _stop(signum, frame):
    raise TooSlowError(f'more than {SECONDS} s of processor time')


@contextmanager
def bounded(megabytes: int = MEGABYTES, seconds: float = SECONDS) -> Iterator[None]:
    """Bound the time and memory of a case.

    Memory beyond the bound is a MemoryError (or the like), which no case may end in.

    Args:
        megabytes: Address space beyond that of now.
        seconds: Processor time.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open('/proc/self/statm') as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    handler = signal.signal(signal.SIGPROF, _stop)
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * seconds)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    took = time.process_time() - started
    assert took < seconds, f'{took:.1f} s of processor time'


def outcome(run: Callable[[], Any], *names: str) -> Any:
    """Run a case.

    Args:
        run: What is done with the damaged input.
        *names: An error must have one of these in its message.

    Returns:
        What it gives; the error if it says in words what is wrong.

    Raises:
        Exception: Any other error, which is a find.
    """
    try:
        with bounded():
            return run()
    except UserError as error:
        said = str(error)
        assert any(name in said for name in names), f'names no file: {said[:500]}'
        assert len(said) < 5000, f'a message of {len(said)} characters: {said[:500]}'
        return error


def case_of(seed: int) -> random.Random:
    """Source of all randomness of a case."""
    return random.Random(seed)
