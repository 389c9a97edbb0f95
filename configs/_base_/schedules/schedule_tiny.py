# A few minutes on a CPU: float32, a larger learning rate for a model trained from scratch.
optim_wrapper = dict(
    type='OptimWrapper',
    # fused: many small tensors; without it the optimizer takes 7 % of a step.
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    accumulative_counts=1,
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=0.02),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0.02, end=1.0),
]

train_cfg = dict(type='PixelTrainLoop', max_iters=1000, val_begin=1, val_interval=1000000)
val_cfg = dict(type='MultiValLoop')
test_cfg = dict(type='MultiTestLoop')

# The expert teaches the model to see objects; then its weight falls, for the sake of the tasks.
custom_hooks = [dict(type='DistillScheduleHook', phases=[dict(until=0.15, end=0.05)])]
