"""Checkpoints that survive a kill at any moment."""

import math
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook

from pixelsail_mm.checkpoints.formats.checkpoint_files import remove, write_pointer
from pixelsail_mm.engine.loops.unreadable import COUNT
from pixelsail_mm.engine.optim_wrappers import accumulation_of
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class PixelCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, changed in four points.

    * A checkpoint is removed only after its successor is complete (MMEngine removes it first).
    * The ``last_checkpoint`` pointer is replaced atomically, after the checkpoint.
    * ``interval`` is rounded up to whole optimizer steps: gradients accumulated so far are not
      part of a checkpoint, so one in the middle of a window could not be resumed exactly.
    * Weights that are NaN or infinite are not written and replace no checkpoint, the best one
      (``save_best``) included: the training ends with a ``DivergedError``.
    """

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

    def save_now(self, runner) -> str:
        """Save a checkpoint at this iteration, which ends an accumulation window, if there is none.

        Args:
            runner: The runner.

        Returns:
            str: Its path.
        """
        if Path(self.last_ckpt or '').name != self.filename_tmpl.format(runner.iter + 1):
            self._save_checkpoint(runner)
        return self.last_ckpt

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

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if self.save_best:  # MMEngine removes the best so far before it writes the new one
            runner.strategy.require_finite_weights(
                self.file_backend.join_path(self.out_dir, 'best_*.pth')
            )
        super()._save_best_checkpoint(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        filename = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, filename)
        runner.strategy.require_finite_weights(path)
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.keep_ckpt_ids[0]
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = path
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_pointer(runner.work_dir, self.last_ckpt)
            if outdated is not None:
                remove(
                    self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
                )
        barrier()
