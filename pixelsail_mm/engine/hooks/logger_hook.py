"""Logging that a full disk does not end."""

import contextlib
from collections.abc import Iterator

from mmengine.hooks import LoggerHook

from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class PixelLoggerHook(LoggerHook):
    """MMEngine's ``LoggerHook``; figures that cannot be written are missed, not waited for.

    The console and the log file are written first. An error of the file system in the files of the
    visualizer's backends (``vis_data``, TensorBoard) is said once; a later write tries again.
    """

    _told = False

    @contextlib.contextmanager
    def _missing_figures(self, runner) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._told:
                runner.logger.error(
                    f'figures of iteration {runner.iter + 1} are not written to '
                    f'{runner.log_dir}: {error.strerror or error}; the training goes on, and they '
                    'are missing in the curves (said once)'
                )
            self._told = True

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Log an iteration; arguments as in MMEngine."""
        with self._missing_figures(runner):
            super().after_train_iter(runner, *args, **kwargs)

    def after_val_epoch(self, runner, *args, **kwargs) -> None:
        """Log the metrics of a validation; arguments as in MMEngine."""
        with self._missing_figures(runner):
            super().after_val_epoch(runner, *args, **kwargs)
