"""End a process that waits for something that does not come, and say what it waited for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

from pixelsail_mm.errors import HUNG

#: Stages of a training: what a process does or waits for in it, and the limit in seconds.
STAGES = dict(
    start=('starting: joining the other processes, building model and data', 3600),
    data=('waiting for the data loader', 1800),
    step=('computing a step with the other processes', 1800),
    evaluation=('evaluating a batch, or its metrics with the other processes', 7200),
    save=('writing a checkpoint with the other processes', 7200),
)
_TICK = 1.0  # seconds
_FRAMES = 8  # of the stack that are shown


class Watchdog(threading.Thread):
    """Thread that ends its process when a stage takes longer than its limit.

    Collective calls wait in C++, where neither a signal nor an exception reaches them, so the
    process ends without unwinding: its own data loader workers are killed, the launcher ends the
    other processes.

    Args:
        limits: Stage of :data:`STAGES` -> seconds, in place of the limit there; None: no limit.
        rank: Number of this process, for the message.
    """

    def __init__(self, limits: Mapping[str, float | None], rank: int) -> None:
        super().__init__(name='watchdog', daemon=True)
        self.limits = {stage: limit for stage, (_, limit) in STAGES.items()} | dict(limits)
        self.rank = rank
        self._main = threading.main_thread().ident
        self._over = threading.Event()
        self.enter('start')

    def enter(self, stage: str, iteration: int | None = None) -> None:
        """Begin a stage; its time counts from now.

        Args:
            stage: A key of :data:`STAGES`.
            iteration: Iterations done, for the message.
        """
        # One assignment: the thread never sees a half of it.
        self._now = [stage, iteration, 0.0]

    @property
    def stage(self) -> tuple[str, int | None]:
        """Present stage and iteration, as :meth:`enter` got them."""
        return self._now[0], self._now[1]

    def run(self) -> None:
        """Add up the time of the stage until :meth:`stop` or its limit."""
        before = time.monotonic()
        while not self._over.wait(_TICK):
            now = time.monotonic()
            # A process that was stopped and continued has not waited meanwhile.
            passed, before = min(now - before, 2 * _TICK), now
            present = self._now
            present[2] += passed
            limit = self.limits[present[0]]
            if limit is not None and present[2] > limit and present is self._now:
                self._end(*present[:2], limit)

    def stop(self) -> None:
        """End the watch."""
        self._over.set()

    def _end(self, stage: str, iteration: int | None, limit: float) -> None:
        frames = traceback.extract_stack(sys._current_frames()[self._main])
        place = ' <- '.join(
            f'{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})'
            for frame in reversed(frames[-_FRAMES:])
        )
        where = '' if iteration is None else f' after iteration {iteration}'
        print(
            f'error: rank {self.rank}{where}: {STAGES[stage][0]} took longer than {limit:g} s, so '
            f'this process ends; it is in {place}. If another rank says nothing, that one hangs '
            f'or was stopped. If it only takes long: default_hooks.watchdog.{stage} is the limit '
            'in seconds (None: none)',
            file=sys.stderr,
            flush=True,
        )
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(HUNG)


_current: Watchdog | None = None


@contextlib.contextmanager
def watching(limits: Mapping[str, float | None], rank: int) -> Iterator[None]:
    """Watch this process inside of the block.

    Args:
        limits: See :class:`Watchdog`.
        rank: Number of this process.
    """
    global _current
    _current = Watchdog(limits, rank)
    _current.start()
    try:
        yield
    finally:
        _current.stop()
        _current = None


def enter(stage: str, iteration: int | None = None) -> None:
    """Begin a stage in a process that is watched, see :meth:`Watchdog.enter`."""
    if _current is not None:
        _current.enter(stage, iteration)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark what the block does, in a process that is watched; before and after it is another stage.

    Args:
        name: A key of :data:`STAGES`.
    """
    if _current is None:
        yield
        return
    around = _current.stage
    _current.enter(name, around[1])
    try:
        yield
    finally:
        _current.enter(*around)
