"""Learning-rate schedules that advance with the optimizer."""

from mmengine.hooks import ParamSchedulerHook

from pixelsail_mm.engine.optim_wrappers import updates_after
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class OptimStepParamSchedulerHook(ParamSchedulerHook):
    """Step the schedules after each optimizer step instead of after each micro-batch.

    The strategies build the schedules in the same unit, see
    :meth:`pixelsail_mm.engine.strategies.common.StrategyMixin.build_param_scheduler`.
    """

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Step the schedules if the optimizer just stepped."""
        if updates_after(runner.optim_wrapper, runner.iter + 1, runner.max_iters):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
