"""Which optimizer steps may be taken: all processes look at losses and gradients together."""

import enum
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor


class Outcome(enum.Enum):
    """Outcome of the last optimizer step, the same in all processes.

    Attributes:
        TAKEN: The weights were changed.
        SKIPPED: A loss or a gradient was NaN or infinite; the weights are as before.
        RESCALED: A gradient overflowed at the present scale of the loss, as it does when float16
            training starts; the weights are as before, and the scaler goes on with another scale.
    """

    TAKEN = 'taken'
    SKIPPED = 'skipped'
    RESCALED = 'rescaled'


def on_any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Combine flags of all processes by *or*, with one small all-reduce.

    Args:
        flags: This process's flags, as many in all processes.
        device: Device of the training.
    """
    if get_world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [vote > 0 for vote in votes.tolist()]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all values are finite.

    Args:
        tensors: Of any precision and device; integers are always finite.
    """
    return all(
        bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point()
    )


class LossWatch:
    """Remembers which micro-batches of the window had a finite loss.

    Attributes:
        finite: One flag (0-dimensional bool tensor) for each micro-batch since the last step.
    """

    def __init__(self) -> None:
        self.finite: list[Tensor] = []
        self._stepped = False

    def see(self, loss: Tensor) -> None:
        """Note a loss; the first after a step begins a new window."""
        if self._stepped:
            self.finite, self._stepped = [], False
        self.finite.append(torch.isfinite(loss.detach()))

    def close(self) -> bool:
        """End the window; whether all its losses were finite, as if none was seen."""
        if self._stepped:
            self.finite = []
        self._stepped = True
        return not self.finite or bool(torch.stack(self.finite).all())
