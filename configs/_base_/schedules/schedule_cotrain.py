# Co-training of the Pixel-SAIL paper: one epoch, AdamW, 5 % linear warm-up, cosine to zero.
# Schedules count optimizer steps; begin and end are shares of the training.
optim_wrapper = dict(
    type='AmpOptimWrapper',  # float32 `OptimWrapper` where there is no GPU
    dtype='bfloat16',
    optimizer=dict(type='AdamW', lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    accumulative_counts=8,
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=0.05),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0.05, end=1.0),
]

train_cfg = dict(type='PixelTrainLoop', max_epochs=1, val_begin=1, val_interval=1000000)
val_cfg = dict(type='MultiValLoop')
test_cfg = dict(type='MultiTestLoop')
