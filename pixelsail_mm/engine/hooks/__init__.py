"""Hooks: checkpoints, exported weights, figures, signals, limits of time, bad samples and steps."""

from pixelsail_mm.engine.hooks.bad_step_hook import BadStepHook
from pixelsail_mm.engine.hooks.checkpoint_hook import PixelCheckpointHook
from pixelsail_mm.engine.hooks.distill_schedule_hook import DistillScheduleHook
from pixelsail_mm.engine.hooks.export_weights_hook import ExportWeightsHook
from pixelsail_mm.engine.hooks.logger_hook import PixelLoggerHook
from pixelsail_mm.engine.hooks.new_token_hook import NewTokenHook
from pixelsail_mm.engine.hooks.param_scheduler_hook import OptimStepParamSchedulerHook
from pixelsail_mm.engine.hooks.skipped_samples_hook import SkippedSamplesHook
from pixelsail_mm.engine.hooks.stop_hook import StopHook
from pixelsail_mm.engine.hooks.train_stats_hooks import MeanLogVarsHook, ThroughputHook
from pixelsail_mm.engine.hooks.watchdog_hook import WatchdogHook

__all__ = [
    'BadStepHook',
    'DistillScheduleHook',
    'ExportWeightsHook',
    'MeanLogVarsHook',
    'NewTokenHook',
    'OptimStepParamSchedulerHook',
    'PixelCheckpointHook',
    'PixelLoggerHook',
    'SkippedSamplesHook',
    'StopHook',
    'ThroughputHook',
    'WatchdogHook',
]
