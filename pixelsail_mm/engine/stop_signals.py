"""SIGTERM and Ctrl-C: a training first saves, and the second signal ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes Ctrl-C on to processes that the terminal has told already.
_ONE_REQUEST = 2.0  # seconds


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signal: The signal that asked; None if none did.
        deferred: Whether somebody will look at ``signal``. If not, a signal ends the process as if
            it were not handled: before the first iteration there is nothing to save.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.deferred = False
        self._owner = os.getpid()
        self._asked_at = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside of the block; only the main thread may call it."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a data loader's worker, which inherits the handler
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # Ctrl-C reaches workers too, but the training needs them until it has saved
        if self.deferred and self.signal is None:
            self.signal, self._asked_at = signal.Signals(number), time.monotonic()
        elif not self.deferred or time.monotonic() - self._asked_at > _ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            os.kill(os.getpid(), number)


#: The request of this process; tools that train listen, and :class:`StopHook` looks at it.
REQUEST = StopRequest()
