# Learn to ground words in pixels from nothing: ShapesWorld's full preset on a CPU, float32.
#   python tools/dataset_converters/make_shapes_world.py --preset full --out data/shapes_world
#   tools/dist_train.sh configs/pixelsail/pixelsail_tiny_grounding.py 2
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/datasets/shapes_world.py',
    '../_base_/schedules/schedule_tiny.py', '../_base_/default_runtime.py'
]

model = dict(backbone=dict(llm=dict(num_hidden_layers=5)))
optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98)))
train_cfg = dict(max_iters=24000)
# First kinds, which have to be made of several patches; then also what is quiet next to them in the
# expert's maps, colours and places of objects: without the second phase they never reach the masks.
custom_hooks = [
    dict(type='DistillScheduleHook', phases=[
        dict(until=0.1, end=0.05),
        # kinds, colours, textures + sizes + object, places
        dict(begin=0.15, until=0.35, start=0.5, end=0.1,
             channel_weights=[1.0] * 10 + [4.0] * 8 + [1.0] * 8 + [4.0] * 2),
    ])
]
