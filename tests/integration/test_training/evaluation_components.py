"""A test that is killed at a chosen place."""

import os
import signal

from mmengine.dist import get_rank
from mmengine.hooks import Hook

from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class KillTestHook(Hook):
    """End a process without warning.

    Args:
        batches: Batches that the process may predict, of all test sets together.
        rank: Which process.
    """

    def __init__(self, batches=None, rank=0):
        self.left, self.rank = batches, rank

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        if self.left is None or get_rank() != self.rank:
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
