"""Optimizer wrappers."""

import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.logging import MessageHub

from pixelsail_mm.registry import OPTIM_WRAPPERS


def accumulation_of(optim_wrapper) -> int:
    """Give the number of micro-batches per optimizer step, for MMEngine's wrappers and ours."""
    return getattr(optim_wrapper, '_accumulative_counts', 1)


def updates_after(optim_wrapper, iteration: int, max_iters: int) -> bool:
    """Whether the optimizer steps at the end of an iteration.

    Args:
        optim_wrapper: The optimizer wrapper.
        iteration: Iterations done, this one included (counted from 1).
        max_iters: Iterations of the whole training; the last one always steps.
    """
    return iteration % accumulation_of(optim_wrapper) == 0 or iteration == max_iters


@OPTIM_WRAPPERS.register_module()
class PixelDeepSpeedOptimWrapper(DeepSpeedOptimWrapper):
    """DeepSpeed's backward and step with the accumulation rules of MMEngine's ``OptimWrapper``.

    The last window of a training may be shorter than the others; its losses are then averaged over
    what it holds, and the step happens, as in single-process training (DeepSpeed alone would drop
    it). The step runs without autograd: gloo's all-gather into the flat parameters fails otherwise
    in ZeRO stages 1 and 2.

    Args:
        optimizer: The optimizer; the strategy replaces it with DeepSpeed's.
        accumulative_counts: Micro-batches per optimizer step.
    """

    def __init__(self, optimizer, accumulative_counts: int = 1):
        super().__init__(optimizer)
        self._accumulative_counts = accumulative_counts
        self._inner_count, self._max_counts = 0, -1
        self.message_hub = MessageHub.get_current_instance()

    def initialize_count_status(self, done: int, max_counts: int) -> None:
        """Set where in the training this wrapper stands.

        Args:
            done: Micro-batches done before.
            max_counts: Micro-batches of the whole training.
        """
        self._inner_count, self._max_counts = done, max_counts

    def _window(self) -> int:
        """Give the number of micro-batches in the current accumulation window."""
        remainder = self._max_counts % self._accumulative_counts if self._max_counts > 0 else 0
        in_last = self._inner_count >= self._max_counts - remainder
        return remainder if remainder and in_last else self._accumulative_counts

    def update_params(self, loss: torch.Tensor) -> None:
        """Accumulate one micro-batch; step at the end of its window.

        Args:
            loss: Scalar loss of the micro-batch.
        """
        factor = self._accumulative_counts / self._window()
        self._inner_count += 1
        steps = updates_after(self, self._inner_count, self._max_counts)
        self.model.set_gradient_accumulation_boundary(steps)
        self.backward(loss * factor)
        self.step()
        if steps:
            norm = self.model.get_global_grad_norm()
            if norm is not None:
                self.message_hub.update_scalar('train/grad_norm', float(norm))

    def step(self, **kwargs) -> None:
        """Let DeepSpeed step, if the window is full."""
        with torch.no_grad():
            super().step(**kwargs)
