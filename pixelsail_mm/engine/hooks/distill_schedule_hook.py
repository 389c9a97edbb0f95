"""Let go of the experts while training proceeds."""

from mmengine.hooks import Hook

from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class DistillScheduleHook(Hook):
    """Lower the weight of the distillation losses linearly, then keep it.

    A model that starts from nothing first needs an expert's features to see objects at all; later
    the same loss takes capacity from the tasks. The factor follows from the iteration alone, so a
    resumed run continues with the same weights.

    Args:
        end: Factor on each configured ``loss_weight`` after the decay; the first is 1.
        until: Share of the training iterations after which ``end`` is reached, in (0, 1].

    Raises:
        ValueError: ``end`` is negative or ``until`` outside (0, 1].
    """

    def __init__(self, end: float = 0.05, until: float = 0.4) -> None:
        if end < 0 or not 0 < until <= 1:
            raise ValueError(f'DistillScheduleHook: end={end} must not be negative and '
                             f'until={until} must be in (0, 1]')
        self.end = end
        self.until = until
        self._weights: list[float] = []

    def factor(self, progress: float) -> float:
        """Factor when a share ``progress`` of the iterations is done."""
        return self.end + (1 - self.end) * max(0.0, 1 - progress / self.until)

    def before_train(self, runner) -> None:
        """Remember the configured weights."""
        self._weights = [loss.loss_weight for loss in self._losses(runner)]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the weights of this iteration."""
        factor = self.factor(runner.iter / runner.max_iters)
        for loss, weight in zip(self._losses(runner), self._weights):
            loss.loss_weight = weight * factor

    @staticmethod
    def _losses(runner) -> list:
        return list(getattr(unwrap(runner.model), 'distill', ()))
