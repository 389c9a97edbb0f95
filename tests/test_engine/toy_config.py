# The engine's own defaults around the toy components.
_base_ = [
    '../../configs/_base_/default_runtime.py',
    '../../configs/_base_/schedules/schedule_tiny.py',
]
custom_imports = dict(imports=['tests.test_engine.toy_components'])
model = dict(type='ToyModel')
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(type='ToyDataset', length=12),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
train_cfg = dict(max_iters=6)
_eval_sampler = dict(type='DefaultSampler', shuffle=False)
test_dataloader = [
    dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type='ToyDataset', length=5, name='a'),
        sampler=_eval_sampler,
    ),
    dict(
        batch_size=1,
        num_workers=0,
        dataset=dict(type='ToyDataset', length=3, name='b'),
        sampler=_eval_sampler,
    ),
]
test_evaluator = [dict(type='ToyMetric', prefix='a'), dict(type='ToyMetric', prefix='b')]
val_dataloader = test_dataloader
val_evaluator = test_evaluator
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
custom_hooks = [dict(type='KillHook', before=None, writing=None)]
