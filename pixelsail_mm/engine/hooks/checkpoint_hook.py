"""Checkpoints that survive a kill at any moment, and that training hardly waits for."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log

from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    remove,
    size_on_disk,
    tidy_leftovers,
    write_pointer,
)
from pixelsail_mm.engine.checkpoint_writer import WRITE_LIMIT
from pixelsail_mm.engine.disk_space import free_bytes, too_large
from pixelsail_mm.engine.hooks.best_checkpoints import BestCheckpoints
from pixelsail_mm.engine.hooks.save_clock import SaveClock
from pixelsail_mm.engine.loops.unreadable import COUNT
from pixelsail_mm.engine.optim_wrappers import accumulation_of, updates_after
from pixelsail_mm.errors import ConfigError, NotSavedError
from pixelsail_mm.registry import HOOKS

_KEPT, _LAST, _BETWEEN = 'keep_ckpt_ids', 'last_ckpt', 'between_ckpt'


class _InFlight(NamedTuple):
    """A save whose end is not known yet, and what the message hub said before it."""

    path: str
    iteration: int
    required: bool
    before: dict[str, Any]


@HOOKS.register_module()
class PixelCheckpointHook(BestCheckpoints, CheckpointHook):
    """MMEngine's ``CheckpointHook``, changed in these points.

    * Training waits only until the state is copied to memory; a thread writes it (see
      :mod:`pixelsail_mm.engine.checkpoint_writer`). One save at a time: the next one, and the end
      of the training, wait for it.
    * A checkpoint is removed only after its successor is complete (MMEngine removes it first),
      the best one (``save_best``) included. The ``last_checkpoint`` pointer follows atomically.
    * ``interval`` is rounded up to whole optimizer steps: gradients accumulated so far are not
      part of a checkpoint, so one in the middle of a window could not be resumed exactly.
    * Weights that are NaN or infinite are not written and replace no checkpoint: the training ends
      with a ``DivergedError``.
    * Too little space and other errors of the disk are logged, and training goes on with the
      earlier checkpoints intact; only without the last checkpoint it ends with an error.
    * The best checkpoints are also listed in ``best_checkpoints.json``: the validation comes after
      the save of its iteration, so that one does not know of them. They do not count among the
      last ``max_keep_ckpts``.

    Args:
        *args: As in MMEngine's ``CheckpointHook``.
        async_save: Write in a thread. It takes memory for one more copy of the process's part of
            the checkpoint while it is written; where there is too little, the training waits.
        interval_minutes: Also save when that much time has passed since the last save. Such a
            checkpoint is for resuming only: it is removed when the next one is complete, and does
            not count among the last ``max_keep_ckpts``. None never does.
        **kwargs: As in MMEngine's ``CheckpointHook``.
    """

    def __init__(
        self, *args, async_save: bool = True, interval_minutes: float | None = None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        if interval_minutes is not None and not interval_minutes > 0:
            raise ConfigError(
                f'default_hooks.checkpoint.interval_minutes={interval_minutes}: give minutes above '
                '0, or None for no saves by time'
            )
        self.async_save = async_save
        self._clock = SaveClock(interval_minutes) if interval_minutes else None
        self._flight: _InFlight | None = None
        self._saved = self._begun = -1
        self._missed: str | None = None

    def before_train(self, runner) -> None:
        """Round the interval; prepare the folder."""
        super().before_train(runner)
        window = accumulation_of(runner.optim_wrapper)
        if not self.by_epoch and self.interval > 0 and self.interval % window:
            rounded = math.ceil(self.interval / window) * window
            runner.logger.warning(
                f'checkpoint interval {self.interval} is not a multiple of the gradient '
                f'accumulation {window}: saving every {rounded} iterations'
            )
            self.interval = rounded
        if self.out_dir != runner.work_dir and is_main_process():
            said = tidy_leftovers(self.out_dir)
            if said:
                runner.logger.info(said)
        info = runner.message_hub.runtime_info
        for key in [key for key in info if key in (_LAST, _BETWEEN) or key.startswith('best_ckpt')]:
            # Where they are now: the work directory may be a copy, and the original is not ours.
            here = os.path.join(self.out_dir, os.path.basename(str(info[key])))
            self._update(runner, {key: here})
        if self.max_keep_ckpts > 0:
            kept = [step for step in self.keep_ckpt_ids if os.path.exists(self._path(step))]
            runner.message_hub.update_info(_KEPT, kept)
        if runner.iter:
            self._saved = runner.iter if os.path.exists(self._path(runner.iter, True)) else -1
            self._recall_best(runner)
        if self._clock:
            self._clock.restart()

    def _path(self, step: int, between: bool = False) -> str:
        name = 'iter_{}.pth' if between and self.by_epoch else self.filename_tmpl
        return os.path.join(self.out_dir, name.format(step))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Note that an iteration has begun."""
        self._begun = runner.iter

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save if the iteration or the clock says so."""
        regular = not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_iter(runner))
        )
        if regular:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
        elif self._clock and self._at_boundary(runner, runner.iter + 1) and self._clock.due():
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations (by time)')
            self._save_between(runner, runner.iter + 1)

    @staticmethod
    def _at_boundary(runner, done: int) -> bool:
        return updates_after(runner.optim_wrapper, done, runner.max_iters)

    def save_now(self, runner, limit: float = WRITE_LIMIT) -> str:
        """Save the present iteration, unless it is saved, and wait until that is complete.

        All processes must call this at the same iteration: between two, in a hook after one, or in
        a hook before one whose priority is above ``VERY_LOW``. The checkpoint is removed when the
        next one is complete, as those by time.

        Args:
            runner: The runner.
            limit: Seconds to wait for it.

        Returns:
            str: Path of the checkpoint.

        Raises:
            ValueError: Gradients of a part of an optimizer step are being accumulated.
            NotSavedError: It could not be written.
        """
        done = runner.iter + (self._begun == runner.iter)
        if done and not self._at_boundary(runner, done):
            raise ValueError(f'iteration {done} is not at the end of an optimizer step')
        self._settle(runner, limit)
        if self._saved != done:
            self._missed = None
            self._save_between(runner, done, required=True)
            self._settle(runner, limit)
            if self._missed:
                missed, self._missed = self._missed, None
                raise NotSavedError(missed)
        return self.last_ckpt or self._path(done, between=True)

    def after_val_epoch(self, runner, metrics: dict) -> None:
        """Save the best checkpoint, if the validation has the metric that says which it is.

        Args:
            runner: The runner.
            metrics: What the validation found.
        """
        # Of a data set that cannot be read at all there are no metrics but this count.
        found = {key: value for key, value in metrics.items() if not key.endswith(COUNT)}
        wanted = getattr(self, 'key_indicators', None) or []
        lacking = [key for key in wanted if key not in found and not (key == 'auto' and found)]
        if lacking:
            runner.logger.warning(
                f'no best checkpoint is chosen: the validation has no {", ".join(lacking)}'
            )
        else:
            super().after_val_epoch(runner, found)

    def after_train(self, runner) -> None:
        """Wait for the save in flight; then publish as MMEngine does."""
        self._settle(runner)
        super().after_train(runner)

    def after_run(self, runner) -> None:
        """End with an error if the last checkpoint is not there; the weights are exported by now.

        Args:
            runner: The runner.

        Raises:
            NotSavedError: It could not be written.
        """
        if self._missed:
            raise NotSavedError(self._missed)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        self._settle(runner)
        info = runner.message_hub.runtime_info
        kept, outdated = list(info.get(_KEPT) or ()), []
        if self.max_keep_ckpts > 0 and step not in kept:
            kept.append(step)
            outdated = [self._path(old) for old in kept[: -self.max_keep_ckpts]]
            kept = kept[-self.max_keep_ckpts :]
        path = self._path(step)
        self._write(
            runner,
            path,
            meta,
            infos={_LAST: path, _KEPT: kept, _BETWEEN: None},
            outdated=[*outdated, info.get(_BETWEEN)],
            required=meta['iter'] >= runner.max_iters,
        )

    def _save_between(self, runner, done: int, required: bool = False) -> None:
        """Save an iteration that is not one of the regular ones."""
        self._settle(runner)
        path = self._path(done, between=True)
        self._write(
            runner,
            path,
            dict(epoch=runner.epoch, iter=done),
            infos={_LAST: path, _BETWEEN: path},
            outdated=[runner.message_hub.runtime_info.get(_BETWEEN)],
            required=required,
        )

    def _write(
        self,
        runner,
        path: str,
        meta: dict,
        infos: dict[str, Any],
        outdated: Sequence[str | None],
        required: bool = False,
        best: bool = False,
    ) -> None:
        """Start a save; none may be in flight.

        Args:
            runner: The runner.
            path: Final name.
            meta: ``epoch`` and ``iter`` (iterations done).
            infos: What the message hub says from now on; None for nothing.
            outdated: Checkpoints that are removed when this one is complete.
            required: The training ends with an error without it.
            best: Without the optimizer's state, and not one to resume from.
        """
        runner.strategy.require_finite_weights(path)
        # The last one of its kind tells the size.
        previous = next((old for old in outdated if old), None) if best else self.last_ckpt
        fault = self._lacks_room(runner, path, previous, optimizer=not best)
        if fault:
            self._miss(runner, fault, required)
            return
        info = runner.message_hub.runtime_info
        before = {key: info.get(key) for key in infos}
        self._update(runner, infos)
        self._flight = _InFlight(path, -1 if best else meta['iter'], required, before)
        only = dict(save_optimizer=False, save_param_scheduler=False)
        what = dict(
            save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler
        )
        runner.save_checkpoint(
            self.out_dir,
            os.path.basename(path),
            meta=meta,
            by_epoch=self.by_epoch,
            background=True,
            published=self._after_publishing(
                runner, path, [old for old in outdated if old and old != path], best
            ),
            **(only if best else what),
            **self.args,
        )
        if self._clock and not best:
            self._clock.restart()
        if not self.async_save:
            self._settle(runner)

    def _update(self, runner, infos: dict[str, Any]) -> None:
        """Set or remove infos of the hub, and what MMEngine's methods keep of them."""
        hub = runner.message_hub
        for key, value in infos.items():
            if value is None:
                hub.runtime_info.pop(key, None)
            else:
                hub.update_info(key, value)
            if key == _LAST:
                self.last_ckpt = value
            elif key.startswith('best_ckpt_') and hasattr(self, 'best_ckpt_path_dict'):
                self.best_ckpt_path_dict[key.removeprefix('best_ckpt_')] = value
            elif key == 'best_ckpt':
                self.best_ckpt_path = value

    def _after_publishing(
        self, runner, path: str, outdated: list[str], best: bool
    ) -> Callable[[], None]:
        """Give what process 0 does when the checkpoint is complete, perhaps in a thread."""
        list_best, work_dir = self._list_best(runner), runner.work_dir

        def publish() -> None:
            try:
                if best:
                    list_best()
                else:
                    write_pointer(work_dir, path)
                for old in outdated:
                    remove(old)
            except OSError as error:  # the checkpoint is there all the same
                print_log(f'after saving {path}: {error}', logger='current', level=30)

        return publish

    def _lacks_room(self, runner, path: str, previous: str | None, optimizer: bool) -> str | None:
        """Say why there is too little space; process 0 looks for all."""
        fault = None
        if is_main_process():
            needed = size_on_disk(previous) if previous else 0
            needed = needed or runner.strategy.bytes_to_save(optimizer and self.save_optimizer)
            free = free_bytes(self.out_dir)
            if needed > free:
                fault = too_large(path, needed, free)
        return all_gather_object(fault)[0]

    def _settle(self, runner, limit: float = WRITE_LIMIT) -> None:
        """Wait for the save in flight, and note what became of it."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        started = time.monotonic()
        result = runner.strategy.settle_checkpoint(limit)
        waited = time.monotonic() - started
        if result.fault:
            self._update(runner, flight.before)
            self._miss(runner, result.fault, flight.required)
            return
        if flight.iteration >= 0:
            self._saved = flight.iteration
        copying, writing = result.seconds
        runner.logger.info(
            f'{flight.path} is complete: {copying:.2f} s to copy, {writing:.2f} s to write, '
            f'{waited:.2f} s waited for it'
        )

    def _miss(self, runner, fault: str, required: bool) -> None:
        """Say that a checkpoint is not there."""
        if required:
            self._missed = fault
        # Rank 0 alone: errors of all ranks reach the terminal.
        log = runner.logger.error if is_main_process() else runner.logger.debug
        rest = '' if required else ', and the training goes on'
        log(f'checkpoint not saved: {fault}. Earlier checkpoints are intact{rest}')
