"""Parts that ask for more memory than any machine has, or whose worker is killed."""

import os
import resource
import signal
import time

import psutil
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from torch.utils.data import get_worker_info

from pixelsail_mm.registry import DATASETS, HOOKS, MODELS
from tests.test_engine.toy_components import ToyDataset, ToyModel

#: Floats; more bytes than a process can address.
TOO_MANY = 2**47


@MODELS.register_module()
class HungryModel(ToyModel):
    """A toy that asks for too much in one forward pass.

    Args:
        mode: ``'loss'`` or ``'predict'``.
        after: Number of passes of that mode before.
        rank: Process that does so.
        size: How many floats.
    """

    def __init__(self, mode='loss', after=0, rank=0, size=TOO_MANY, **kwargs):
        super().__init__(**kwargs)
        self.hungry_mode, self.left, self.rank, self.hunger = mode, after, rank, size

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == self.hungry_mode and get_rank() == self.rank:
            if not self.left:
                torch.empty(self.hunger)
            self.left -= 1
        return super().forward(inputs, data_samples, mode)


@DATASETS.register_module()
class HungryDataset(ToyDataset):
    """A toy of which one item asks for too much (``allocate``) or ends its worker (``die``)."""

    def __init__(self, fault, item=9, **kwargs):
        super().__init__(**kwargs)
        self.fault, self.item = fault, item

    def __getitem__(self, draw):
        if draw % self.size == self.item and self.fault == 'allocate':
            torch.empty(TOO_MANY)
        if draw % self.size == self.item and self.fault == 'die':
            assert get_worker_info() is not None
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return super().__getitem__(draw)


@HOOKS.register_module()
class LimitHook(Hook):
    """Let the system give this process no more than what it has now and some ``extra`` bytes."""

    def __init__(self, extra):
        self.extra = extra

    def before_train(self, runner):
        limit = psutil.Process().memory_info().vms + self.extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
