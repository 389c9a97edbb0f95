"""Parts that send signals or hang at a chosen place of a training."""

import os
import signal
import time

import psutil
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from pixelsail_mm.registry import DATASETS, HOOKS
from tests.test_engine.toy_components import ToyDataset


@HOOKS.register_module()
class SignalHook(Hook):
    """Send a signal before an iteration.

    Args:
        number: Name of the signal; None sends none.
        before: Iteration (from 0) of the training or of a validation.
        rank: Process that sends it.
        during: ``'train'`` or ``'val'``.
        to: ``'self'``, ``'launcher'`` (the parent) or ``'all'``: itself and its workers, as
            Ctrl-C in a terminal.
    """

    def __init__(self, number=None, before=2, rank=0, during='train', to='self'):
        self.number, self.before, self.rank, self.during, self.to = number, before, rank, during, to

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        if not self.number or (mode, batch_idx, get_rank()) != (
            self.during,
            self.before,
            self.rank,
        ):
            return
        own = psutil.Process()
        targets = dict(
            self=[own], launcher=[own.parent()], all=[*own.children(recursive=True), own]
        )
        for process in targets[self.to]:
            process.send_signal(getattr(signal, self.number))
        time.sleep(0.1)  # a signal to another process is there before this one goes on


@DATASETS.register_module()
class HangingDataset(ToyDataset):
    """Sleeps for ever at a draw, in a worker only: the test would not end otherwise."""

    def __init__(self, hangs_at=5, **options):
        super().__init__(**options)
        self.hangs_at = hangs_at

    def __getitem__(self, draw):
        if draw == self.hangs_at and torch.utils.data.get_worker_info() is not None:
            with open(os.environ['HANGING_PID'], 'w') as file:
                file.write(str(os.getpid()))
            while True:
                time.sleep(1)
        return super().__getitem__(draw)
