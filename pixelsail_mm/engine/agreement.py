"""Decisions that all processes of a training must take at the same iteration."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size


class Agreement:
    """Combine flags of all processes by *or*, without waiting for anybody.

    The flags travel while the next iteration computes, over a gloo group of their own: NCCL would
    wait for the GPU. So what one process asks at a call is answered, in all processes, at the next
    one. All processes must make and call it at the same points.

    Args:
        flags: Number of flags.
    """

    def __init__(self, flags: int) -> None:
        self._several = get_world_size() > 1
        self._group = dist.new_group(backend='gloo') if self._several else None
        self._votes = torch.zeros(flags)
        self._work: dist.Work | None = None

    def ask(self, *flags: bool) -> list[bool]:
        """Hand in this process's flags.

        Args:
            *flags: As many as the agreement has.

        Returns:
            list[bool]: What any process handed in at the call before this one; with one process,
            the flags.
        """
        if not self._several:
            return list(flags)
        agreed = self.wait()
        self._votes = torch.tensor(flags, dtype=torch.float32)
        self._work = dist.all_reduce(
            self._votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def wait(self) -> list[bool]:
        """Answer of the last call of :meth:`ask`; nothing is under way after it."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return [vote > 0 for vote in self._votes.tolist()]
