"""Report optimizer steps that were skipped, and stop a training that has only such steps."""

import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook

from pixelsail_mm.engine.step_check import Outcome
from pixelsail_mm.errors import DivergedError, shortened
from pixelsail_mm.registry import HOOKS

_NAMED = 16


@HOOKS.register_module()
class BadStepHook(Hook):
    """Log and count the steps that were skipped for NaN or infinity; stop after a streak.

    The optimizer wrappers skip such steps, see :mod:`pixelsail_mm.engine.optim_wrappers`. Steps
    that a loss scaler drops while it looks for a scale are counted apart and end no training; of
    such steps in a row the first is logged.

    Args:
        max_streak: Skipped optimizer steps in a row after which the training stops; 0 never stops
            it.

    Raises:
        DivergedError: ``max_streak`` steps in a row were skipped; in all processes at once.
    """

    priority = 4  # before MeanLogVarsHook, so that the losses are still this process's own

    def __init__(self, max_streak: int = 10):
        self.max_streak = max_streak
        self.skipped = self.rescaled = self.streak = 0
        self._rescaling = False
        self._window: list[list[str]] = []

    def before_train(self, runner) -> None:
        """Warn if nothing checks the steps."""
        if not hasattr(runner.optim_wrapper, 'outcome'):
            runner.logger.warning(
                f'optim_wrapper.type={type(runner.optim_wrapper).__name__} does not check losses '
                'and gradients: one NaN reaches the weights. Derive it from PixelOptimWrapper'
            )

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Check the outcome of the optimizer step, if the window ends here.

        Args:
            runner: The runner.
            batch_idx: Iterations done before this one.
            data_batch: The batch, whose samples are named when its step is skipped.
            outputs: The log variables.
        """
        if not hasattr(runner.optim_wrapper, 'outcome'):
            return
        self._window.append(_sample_ids(data_batch))
        outcome = runner.optim_wrapper.outcome
        if outcome is None:
            return
        window, self._window = self._window, []
        if outcome is Outcome.RESCALED:
            self.rescaled += 1
            if not self._rescaling:
                runner.logger.info(
                    f'iteration {batch_idx + 1}: a gradient overflowed, so the loss scaler lowers '
                    'its scale; this step and those until the scale fits are dropped'
                )
        elif outcome is Outcome.TAKEN:
            self.streak = 0
        else:
            self.skipped += 1
            self.streak += 1
            self._report(runner, batch_idx + 1, window, outputs or {})
        self._rescaling = outcome is Outcome.RESCALED

    def _report(self, runner, iteration: int, window: list[list[str]], outputs: dict) -> None:
        finite = runner.optim_wrapper.losses.finite[-len(window) :]
        lost = [ids for ids, flag in zip(window, finite) if not flag]
        names = [name for name, value in outputs.items() if not _is_finite(value)]
        everyone = all_gather_object(dict(lost=lost, all=window, names=names))
        guilty = [found for found in everyone if found['lost']]
        ids = [
            sample
            for found in guilty or everyone
            for batch in found['lost' if guilty else 'all']
            for sample in batch
        ]
        names = list(dict.fromkeys(name for found in everyone for name in found['names']))
        seen = 'all losses were finite' if finite else 'the model showed no losses'
        what = 'its loss' if guilty else f'a gradient ({seen})'
        # Rank 0 alone: errors of all ranks reach the terminal, and this one is the same for all.
        log = runner.logger.error if is_main_process() else runner.logger.debug
        log(
            f'iteration {iteration}: optimizer step skipped, {what} is NaN or infinite'
            f'{" (" + ", ".join(names) + ")" if names else ""}; the weights are as before it. '
            f'Samples: {shortened(ids, _NAMED)}. Skipped so far: {self.skipped}, in a row: '
            f'{self.streak}'
        )
        if self.max_streak and self.streak >= self.max_streak:
            counts = f'{self.skipped} in this run' + (
                f', {self.rescaled} more dropped by the loss scaler' if self.rescaled else ''
            )
            raise DivergedError(
                f'{self.streak} optimizer steps in a row had a loss or a gradient that is NaN or '
                f'infinite (the last at iteration {iteration}; {counts}); none '
                'of them was taken, and checkpoints hold finite weights. Lower the learning rate '
                'or correct the samples named above, then continue with --resume; '
                'default_hooks.bad_steps.max_streak sets how many are allowed'
            )

    def after_train(self, runner) -> None:
        """Print the counts."""
        rescaled = f'; dropped by the loss scaler: {self.rescaled}' if self.rescaled else ''
        tell = runner.logger.warning if self.skipped else runner.logger.info
        tell(f'skipped optimizer steps: {self.skipped or "none"}{rescaled}')


def _sample_ids(data_batch) -> list[str]:
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [str(sample.get('sample_id', 'without id')) for sample in samples or ()]


def _is_finite(value) -> bool:
    return bool(torch.isfinite(torch.as_tensor(value)).all())
