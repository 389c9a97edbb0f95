# What a run decides for itself is in its log, a line each: the strategy (from launcher and
# deepspeed), a DrawIndexSampler around the sampler of training, an optimizer wrapper that skips bad
# steps, float32 where there is no GPU, the window of the logged means.
default_scope = 'pixelsail_mm'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    mean_log_vars=dict(type='MeanLogVarsHook'),
    throughput=dict(type='ThroughputHook'),
    logger=dict(type='PixelLoggerHook', interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type='OptimStepParamSchedulerHook'),
    checkpoint=dict(
        type='PixelCheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=2,
        # Also saved when so much time has passed; kept until the next save only.
        interval_minutes=15,
    ),
    export_weights=dict(type='ExportWeightsHook'),
    # 10 steps in a row with NaN or infinity end a training; None takes every step unchecked.
    bad_steps=dict(type='BadStepHook', max_streak=10),
    skipped_samples=dict(type='SkippedSamplesHook', interval=100),
    new_tokens=dict(type='NewTokenHook'),
    # The first SIGTERM or Ctrl-C saves and ends the training with status 75; --resume goes on.
    stop=dict(type='StopHook'),
    # Seconds after which a process that waits is ended, with a message; None: no limit.
    watchdog=dict(
        type='WatchdogHook', start=3600, data=1800, step=1800, evaluation=7200, save=7200),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='PixelVisualizationHook'),  # off until it has a `show_dir`
)

# fork and cv2 threads off: workers start at once and do not fight over the cores.
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Longer than a limit of the watchdog, whose message says what was waited for.
    dist_cfg=dict(backend='nccl', timeout=9000),
)

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)

# The losses of a log line are means over the last `window_size` iterations: at least the logger's
# interval and one gradient-accumulation window.
log_processor = dict(
    by_epoch=False, mean_pattern=r'.*(loss|time|tokens_per_sec).*')
log_level = 'INFO'

# Seed of data order, dropout and point sampling; sample randomness: `seed` of the datasets.
randomness = dict(seed=0)

load_from = None
resume = False
