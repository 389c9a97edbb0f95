"""Logging that a full disk does not end."""

import contextlib
import logging
from collections.abc import Iterator

from mmengine.hooks import LoggerHook

from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class PixelLoggerHook(LoggerHook):
    """MMEngine's ``LoggerHook``; figures that cannot be written are missed, not waited for.

    The console comes first. An error of the file system in the files of the visualizer's backends
    (``vis_data``, TensorBoard) is said once there, and lines that the log file cannot take are left
    out of it; a later write tries again.
    """

    _told = False

    def before_run(self, runner) -> None:
        """Let the log file miss lines, too, where Python would print a traceback for each."""
        super().before_run(runner)
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = lambda record: None

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
