# Quickstart: minutes on 2 CPU cores, see tools/quickstart.sh. By hand:
#   export PIXELSAIL_DATA=data/shapes_world_mini
#   python tools/dataset_converters/make_shapes_world.py --preset mini --out $PIXELSAIL_DATA
#   python tools/train.py configs/pixelsail/pixelsail_mini.py
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/datasets/shapes_world.py',
    '../_base_/schedules/schedule_tiny.py', '../_base_/default_runtime.py'
]

optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98)))
train_cfg = dict(max_iters=3400)
# First kinds, which have to be made of several patches; then also what is quiet next to them in the
# expert's maps, colours and places of objects: otherwise it is luck whether they reach the masks.
custom_hooks = [
    dict(type='DistillScheduleHook', phases=[
        dict(until=0.15, end=0.05),
        # kinds, colours, textures + sizes + object, places
        dict(begin=0.25, until=0.5, start=0.5, end=0.1,
             channel_weights=[1.0] * 10 + [4.0] * 8 + [1.0] * 8 + [4.0] * 2),
    ])
]
