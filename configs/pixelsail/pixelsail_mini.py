# Quickstart: minutes on 2 CPU cores, see tools/quickstart.sh. By hand:
#   export PIXELSAIL_DATA=data/shapes_world_mini
#   python tools/dataset_converters/make_shapes_world.py --preset mini --out $PIXELSAIL_DATA
#   python tools/train.py configs/pixelsail/pixelsail_mini.py
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/datasets/shapes_world.py',
    '../_base_/schedules/schedule_tiny.py', '../_base_/default_runtime.py'
]

optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98)))
train_cfg = dict(max_iters=3600)
