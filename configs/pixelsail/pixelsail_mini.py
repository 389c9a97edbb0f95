# Quickstart: minutes on 2 CPU cores, see tools/quickstart.sh. By hand:
#   python tools/dataset_converters/make_shapes_world.py --preset mini --out data/shapes_world_mini
#   python tools/train.py configs/pixelsail/pixelsail_mini.py
# PIXELSAIL_DATA names another folder.
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/datasets/shapes_world.py',
    '../_base_/schedules/schedule_tiny.py', '../_base_/default_runtime.py'
]

# The folder of the quickstart, which leaves that of the full preset alone.
data_root = '{{$PIXELSAIL_DATA:data/shapes_world_mini}}'
tokenizer = data_root + '/tokenizer'
model = dict(
    tokenizer=tokenizer,
    distill=[
        dict(loss, expert=dict(loss.expert, root=data_root + '/expert',
                               image_root=data_root + '/images')) for loss in _base_.model.distill
    ])
train_pipeline = [dict(stage, tokenizer=tokenizer) if 'tokenizer' in stage else stage
                  for stage in _base_.train_pipeline]
test_pipeline = [dict(stage, tokenizer=tokenizer) if 'tokenizer' in stage else stage
                 for stage in _base_.test_pipeline]
refcoco = dict(data_root=data_root)
osprey = dict(data_root=data_root)
eval_refcoco = dict(data_root=data_root, pipeline=test_pipeline)
eval_osprey = dict(data_root=data_root, pipeline=test_pipeline)
train_dataloader = dict(batch_size=8, dataset=dict(
    pipeline=train_pipeline,
    datasets=[dict(part, data_root=data_root)
              for part in _base_.train_dataloader.dataset.datasets]))
val_dataloader = [dict(loader, dataset=dict(loader.dataset, **eval_refcoco))
                  for loader in _base_.val_dataloader]
test_dataloader = [dict(loader, dataset=dict(loader.dataset, **eval_refcoco))
                   for loader in _base_.test_dataloader]

optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98)))
train_cfg = dict(max_iters=2400)
# The full rate for most of the way: while it falls from the beginning, relations are not learned.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=0.02),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0.7, end=1.0),
]
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
