"""Resuming a training, perhaps with other settings than it was saved with."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import is_main_process
from torch import nn

from pixelsail_mm.checkpoints.formats.safe_pickle import read_pickle
from pixelsail_mm.checkpoints.formats.zero_checkpoint import is_zero_folder, read_structure
from pixelsail_mm.engine.default_hooks import HooksOffRunner
from pixelsail_mm.engine.optim_wrappers import accumulation_of
from pixelsail_mm.engine.training_settings import (
    RECORD,
    Change,
    compare,
    place_of,
    table,
    to_text,
    training_settings,
)
from pixelsail_mm.errors import CheckpointError, ConfigError

_WEIGHTS_ONLY = (
    'to begin a new training with its weights, leave out --resume and give '
    '--cfg-options load_from=CHECKPOINT'
)


class Saved(NamedTuple):
    """Settings that a checkpoint records of the training that wrote it.

    Attributes:
        iteration: Iterations done.
        settings: The record of its settings; None in checkpoints of earlier versions.
    """

    iteration: int
    settings: dict[str, Any] | None


def read_saved(path: str | Path) -> Saved:
    """Read place and settings of a training checkpoint; no weight is read and nothing runs.

    Args:
        path: A ``.pth`` file or a DeepSpeed checkpoint folder.

    Raises:
        CheckpointError: It is not a training checkpoint, or has something in it that would run.
    """
    path = Path(path)
    zero = path.is_dir() and is_zero_folder(path)
    content = read_structure(path) if zero else read_pickle(path, map_location='meta')
    meta = content.get('meta')
    if not isinstance(meta, dict) or not isinstance(meta.get('iter'), int):
        raise CheckpointError(path, 'holds weights but no training to continue', _WEIGHTS_ONLY)
    if not zero and 'optimizer' not in content:
        raise CheckpointError(path, 'has no optimizer state', _WEIGHTS_ONLY)
    if 'config' in meta:
        raise CheckpointError(
            path, 'has meta["config"], which MMEngine would run as Python code', _WEIGHTS_ONLY
        )
    record = meta.get(RECORD)
    try:
        return Saved(meta['iter'], None if record is None else json.loads(record))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            path, f'its record of settings is damaged ({error})', 'resume from another checkpoint'
        ) from error


class _Fresh:
    """Optimizer settings and schedules of this run's config, as before its first step."""

    def __init__(self, strategy) -> None:
        self._wrapper = strategy.optim_wrapper
        self._schedules = list(getattr(strategy, 'param_schedulers', None) or ())
        self._groups = [self._of(group) for group in self._wrapper.param_groups]
        self._states = [copy.deepcopy(schedule.state_dict()) for schedule in self._schedules]

    @staticmethod
    def _of(group: dict) -> dict:
        return {key: value for key, value in group.items() if key != 'params'}

    @property
    def by_values(self) -> bool:
        """Tell whether a schedule depends on validation values, which are not kept."""
        return any(hasattr(schedule, 'need_val_args') for schedule in self._schedules)

    def restore(self, steps: int) -> None:
        """Set all as it would be after optimizer steps.

        The schedules compute each value from the one before. So they are stepped, which gives the
        very digits that they have in a run from the beginning.
        """
        for group, fresh in zip(self._wrapper.param_groups, self._groups, strict=True):
            for key in [key for key in group if key.startswith('initial_') and key not in fresh]:
                del group[key]
            group.update(copy.deepcopy(fresh))
        for schedule, state in zip(self._schedules, self._states):
            schedule.load_state_dict(state)
        # What MMEngine counts to warn of schedules that step before their optimizer.
        self._wrapper._global_step = steps - 1
        iterative = [schedule for schedule in self._schedules if not schedule.by_epoch]
        for _ in range(steps):
            for schedule in iterative:
                schedule.step()

    def rate(self) -> float:
        """Learning rate of the first group."""
        return float(self._wrapper.param_groups[0]['lr'])


class PixelRunner(HooksOffRunner):
    """MMEngine's ``FlexibleRunner`` that resumes with the settings of the config.

    MMEngine takes learning rate, schedules and all other settings of the optimizer from the
    checkpoint, whatever the config says. Here every checkpoint holds a record of the settings
    (:func:`~pixelsail_mm.engine.training_settings.training_settings`); a resumed run says which are
    not the same, goes on with those of the config, or refuses where that would not be exact.
    """

    def load_or_resume(self) -> None:
        """Note the settings of this run; then load or resume as MMEngine does."""
        self._settings = training_settings(self)
        super().load_or_resume()

    def train(self) -> nn.Module:
        """Train; if that ends with an error, first let a checkpoint in flight be written.

        Returns:
            nn.Module: The model.
        """
        try:
            return super().train()
        except BaseException:
            self._finish_save()
            raise

    def _finish_save(self) -> None:
        save, self.strategy.save_in_flight = self.strategy.save_in_flight, None
        if save is None:
            return
        fault = save.finish()
        if is_main_process():
            tell = self.logger.error if fault else self.logger.info
            tell(f'checkpoint in flight: {fault or "complete"}')

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
        **how,
    ) -> None:
        """Save a checkpoint with the record of the settings.

        ``epoch`` and ``iter`` of ``meta`` count, other than in MMEngine, which is one too far
        after a validation.

        Args:
            out_dir: Folder of the checkpoint, on a file system.
            filename: Its name there.
            file_client_args: Not used.
            save_optimizer: With the optimizer's state.
            save_param_scheduler: With the schedules.
            meta: What to add to ``meta``.
            by_epoch: Called at the end of an epoch, not of an iteration.
            backend_args: Not used.
            **how: ``background`` and ``published``, see
                :meth:`~pixelsail_mm.engine.strategies.common.StrategyMixin.save_checkpoint`.
        """
        place = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        about = dict(cfg=self.cfg.pretty_text, experiment_name=self.experiment_name)
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            about['dataset_meta'] = self.train_dataloader.dataset.metainfo
        meta = {**place, **(meta or {}), **about, RECORD: to_text(self._settings)}
        self.strategy.save_checkpoint(
            os.path.join(out_dir, filename),
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            extra_ckpt=dict(meta=meta, message_hub=self.message_hub.state_dict()),
            callback=lambda state: self.call_hook('before_save_checkpoint', checkpoint=state),
            **how,
        )

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume from a checkpoint.

        Args:
            filename: The ``.pth`` file, or the folder that DeepSpeed wrote.
            *args: As in MMEngine.
            **kwargs: As in MMEngine.

        Raises:
            ConfigError: A setting is not the saved one and cannot be applied.
            CheckpointError: The checkpoint cannot be resumed.
        """
        deepspeed = self._settings['deepspeed'] is not None
        if not deepspeed and Path(filename).is_dir():
            raise CheckpointError(
                filename,
                'is a checkpoint of DeepSpeed',
                f'resume with the --deepspeed it was saved with; {_WEIGHTS_ONLY}',
            )
        if deepspeed and not Path(filename).is_dir():
            super().resume(filename, *args, **kwargs)  # says why this cannot be
            return
        saved, fresh = read_saved(filename), _Fresh(self.strategy)
        changes = self._compare(filename, saved, fresh)
        anew = saved.settings is None or any(change.schedules for change in changes)
        # MMEngine would look for as many schedules as there are now.
        kwargs['resume_param_scheduler'] = not anew or fresh.by_values
        try:
            super().resume(filename, *args, **kwargs)
        except ValueError as error:
            if 'parameter group' not in str(error):
                raise
            raise CheckpointError(
                filename, f'its optimizer is for other weights ({error})', _WEIGHTS_ONLY
            ) from error
        if anew and not fresh.by_values:
            self._apply(saved, fresh)

    def _compare(self, filename: str, saved: Saved, fresh: _Fresh) -> list[Change]:
        """Say what differs; refuse what cannot be applied."""
        if saved.settings is None:
            fault = place_of(self._settings, saved.iteration).fault
            if fault:
                raise ConfigError(f'cannot resume: {filename}: {fault}, or, {_WEIGHTS_ONLY}')
            self.logger.warning(
                f'training settings: {filename} has no record of them (an earlier version wrote '
                'it), so they cannot be compared; those of this config are used'
                + (', but the schedules are those of the checkpoint' if fresh.by_values else '')
            )
            return []
        changes = compare(saved.settings, self._settings, saved.iteration)
        for change in changes:
            if change.schedules and fresh.by_values:
                change.effect = 'refused: a schedule depends on values of the validation'
        if not changes:
            self.logger.info(f'training settings: as in {filename}')
            return changes
        title = (
            f'{filename} (iteration {saved.iteration}) was saved with other settings:\n'
            f'{table(changes)}'
        )
        if any(change.refused for change in changes):
            raise ConfigError(
                f'cannot resume: {title}\nuse the saved values where it says '
                f'refused, or, {_WEIGHTS_ONLY}'
            )
        self.logger.warning(f'training settings: {title}')
        return changes

    def _apply(self, saved: Saved, fresh: _Fresh) -> None:
        steps = -(-saved.iteration // accumulation_of(self.optim_wrapper))
        fresh.restore(steps)
        self.logger.info(
            f'training settings: after {steps} optimizer steps the learning rate is '
            f'{fresh.rate():.4g}'
        )
