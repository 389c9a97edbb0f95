"""Report optimizer steps that were skipped, and stop a training that has only such steps."""

from __future__ import annotations

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook

from pixelsail_mm.engine import bad_step_files
from pixelsail_mm.engine.hooks.bad_predictions import BadPredictionsMixin
from pixelsail_mm.engine.optimizer_state import bad_entries, reset_bad_entries
from pixelsail_mm.engine.step_check import Outcome
from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.errors import DivergedError, shortened
from pixelsail_mm.registry import HOOKS

_NAMED = 16


@HOOKS.register_module()
class BadStepHook(BadPredictionsMixin, Hook):
    """Log and count the steps that were skipped for NaN or infinity; stop after a streak.

    The optimizer wrappers skip such steps, see :mod:`pixelsail_mm.engine.optim_wrappers`. Steps
    that a loss scaler drops while it looks for a scale are counted apart and end no training; of
    such steps in a row the first is logged. What the optimizer remembers is set to zero where it
    is not finite, see :func:`~pixelsail_mm.engine.optimizer_state.reset_bad_entries`.

    Of each skipped step the processes with a bad loss (all, if none has one) write samples, losses,
    gradient norm and learning rate into ``WORK_DIR/bad_steps/iter_N_rank_R.json``.

    Args:
        max_streak: Skipped optimizer steps in a row after which the training stops; 0 never stops
            it.
        max_files: Files that each process may leave in ``bad_steps``; 0 for none.

    Raises:
        DivergedError: ``max_streak`` steps in a row were skipped; in all processes at once.
    """

    priority = 4  # before MeanLogVarsHook, so that the losses are still this process's own

    def __init__(self, max_streak: int = 10, max_files: int = 20):
        self.max_streak, self.max_files = max_streak, max_files
        self.skipped = self.rescaled = self.streak = 0
        self._rescaling = False
        self._window: list[dict] = []

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
        self._window.append(bad_step_files.micro_batch(data_batch, outputs))
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
            self._report(runner, batch_idx + 1, window)
        self._rescaling = outcome is Outcome.RESCALED

    def _report(self, runner, iteration: int, window: list[dict]) -> None:
        finite = [bool(flag) for flag in runner.optim_wrapper.losses.finite[-len(window) :]]
        lost = [one for one, flag in zip(window, finite) if not flag]
        state = self._reset_state(runner)
        everyone = all_gather_object(
            dict(
                lost=[bad_step_files.sample_ids(one) for one in lost],
                all=[bad_step_files.sample_ids(one) for one in window],
                names=bad_step_files.losses_of(window),
                state=state,
            )
        )
        guilty = any(found['lost'] for found in everyone)
        cause = self._cause(everyone, bool(finite))
        file = None
        if self.max_files and (lost or not guilty):
            file = self._write(runner, iteration, cause, window, finite, state)
        files = [name for name in all_gather_object(file) if name]
        ids = [
            sample
            for found in everyone
            for batch in found['lost' if guilty else 'all']
            for sample in batch
        ]
        # Rank 0 alone: errors of all ranks reach the terminal, and this one is the same for all.
        log = runner.logger.error if is_main_process() else runner.logger.debug
        log(
            f'iteration {iteration}: optimizer step skipped, {cause}; the weights are as before '
            f'it. Samples: {shortened(ids, _NAMED)}. Skipped so far: {self.skipped}, in a '
            f'row: {self.streak}{". Written to " if files else ""}{shortened(files, 4)}'
        )
        if self.max_streak and self.streak >= self.max_streak:
            self._end(iteration)

    @staticmethod
    def _cause(everyone: list[dict], shown: bool) -> str:
        """Say what was bad, of what all processes found; whether this one was shown losses."""
        names = list(dict.fromkeys(name for found in everyone for name in found['names']))
        state = [entry for found in everyone for entry in found['state']]
        said = []
        if any(found['lost'] for found in everyone):
            said.append('its loss')
        elif not state:
            seen = 'all losses were finite' if shown else 'the model showed no losses'
            said.append(f'a gradient ({seen})')
        if said:
            said = [f'{said[0]} is NaN or infinite{" (" + ", ".join(names) + ")" if names else ""}']
        if state:
            said.append(
                f"the optimizer's state is NaN or infinite ({shortened(state, 5)}) and is set to "
                'zero there, as at the start'
            )
        return ', '.join(said)

    @staticmethod
    def _reset_state(runner) -> list[str]:
        """Reset the optimizer's state where it is bad; names of what was, in this process."""
        wrapper = runner.optim_wrapper
        if not wrapper.bad_state:
            return []
        model = unwrap(runner.model)
        found = bad_entries(model, wrapper.optimizer)
        sharded = hasattr(wrapper.optimizer, 'optimizer')
        reset_bad_entries(wrapper.optimizer, replicated=not sharded)
        return found

    def _write(
        self,
        runner,
        iteration: int,
        cause: str,
        window: list[dict],
        finite: list[bool],
        state: list[str],
    ) -> str:
        """Write the file of this process; its path, or why there is none."""
        hub, number = runner.message_hub, bad_step_files.number
        norm = hub.log_scalars.get('train/grad_norm')
        batches = [
            dict(
                loss_is_finite=flag,
                losses={name: number(value) for name, value in one['losses'].items()},
                samples=one['samples'],
            )
            for one, flag in zip(window, finite or [None] * len(window))
        ]
        content = dict(
            iteration=iteration,
            cause=cause,
            grad_norm=None if norm is None else number(norm.current()),
            learning_rates=runner.optim_wrapper.get_lr(),
            optimizer_state=state,
            skipped_so_far=self.skipped,
            skipped_in_a_row=self.streak,
            micro_batches=batches,
        )
        return bad_step_files.write(runner.work_dir, iteration, self.max_files, content)

    def _end(self, iteration: int) -> None:
        counts = f'{self.skipped} in this run' + (
            f', {self.rescaled} more dropped by the loss scaler' if self.rescaled else ''
        )
        raise DivergedError(
            f'{self.streak} optimizer steps in a row had a loss, a gradient or a state of the '
            f'optimizer that is NaN or infinite (the last at iteration {iteration}; {counts}); '
            'none of them was taken, and checkpoints hold finite weights. Lower the learning rate '
            'or correct the samples named above, then continue with --resume; '
            'default_hooks.bad_steps.max_streak sets how many are allowed'
        )

    def after_train(self, runner) -> None:
        """Print the counts."""
        rescaled = f'; dropped by the loss scaler: {self.rescaled}' if self.rescaled else ''
        tell = runner.logger.warning if self.skipped else runner.logger.info
        tell(f'skipped optimizer steps: {self.skipped or "none"}{rescaled}')
