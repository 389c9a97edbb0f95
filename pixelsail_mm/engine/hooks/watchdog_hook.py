"""Tell the watchdog what a run does."""

from __future__ import annotations

from mmengine.hooks import Hook

from pixelsail_mm.engine import watchdog
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class WatchdogHook(Hook):
    """End a process that waits longer than a limit; the message says for what, and the key here.

    ``tools/train.py`` and ``tools/test.py`` watch, from before the processes join each other. A
    runner in a program of one's own is not watched: its process may do something else afterwards.

    Args:
        start: Seconds until the first iteration; None, here and below, for no limit.
        data: Seconds to wait for a batch.
        step: Seconds for an iteration.
        evaluation: Seconds for a batch of an evaluation, and for its metrics. Processes that have
            fewer or shorter answers wait here for the others.
        save: Seconds for a checkpoint or for the weights at the end.
    """

    priority = 'LOWEST'  # what other hooks do after an iteration is a part of it

    def __init__(
        self,
        start: float | None = watchdog.STAGES['start'][1],
        data: float | None = watchdog.STAGES['data'][1],
        step: float | None = watchdog.STAGES['step'][1],
        evaluation: float | None = watchdog.STAGES['evaluation'][1],
        save: float | None = watchdog.STAGES['save'][1],
    ) -> None:
        self.limits = dict(start=start, data=data, step=step, evaluation=evaluation, save=save)

    def _before_iter(self, runner, batch_idx: int, data_batch=None, mode: str = 'train') -> None:
        watchdog.enter('step' if mode == 'train' else 'evaluation', runner.iter)

    def _after_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None, mode: str = 'train'
    ) -> None:
        done = runner.iter + (mode == 'train')  # it is counted after the hooks
        watchdog.enter('data' if mode == 'train' else 'evaluation', done)

    def before_train(self, runner) -> None:
        """The first batch is next."""
        watchdog.enter('data', runner.iter)

    def before_val(self, runner) -> None:
        """An evaluation begins."""
        watchdog.enter('evaluation', runner.iter)

    def after_val(self, runner) -> None:
        """The training goes on."""
        watchdog.enter('data', runner.iter)

    def before_test(self, runner) -> None:
        """An evaluation begins."""
        watchdog.enter('evaluation')

    def after_train(self, runner) -> None:
        """The weights at the end are written next."""
        watchdog.enter('save', runner.iter)
