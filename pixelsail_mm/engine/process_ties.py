"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from functools import partial

from torch.utils.data import DataLoader

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Have Linux send this process a signal when its parent ends, in whatever way.

    Elsewhere nothing is done. A parent that has ended already goes unnoticed.

    Args:
        number: The signal.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def tie_workers(dataloader: DataLoader) -> None:
    """Let the workers of a data loader end with their process, even asleep in a transform.

    PyTorch's workers look for their parent only while they wait for work.

    Args:
        dataloader: A data loader that has not started its workers.
    """
    dataloader.worker_init_fn = partial(_start_worker, dataloader.worker_init_fn)


def _start_worker(then: Callable[[int], None] | None, worker_id: int) -> None:
    end_with_parent(signal.SIGKILL)
    if then is not None:
        then(worker_id)
