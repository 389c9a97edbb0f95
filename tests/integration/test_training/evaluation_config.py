# What the shipped weights were trained with, and a hook that ends the test without warning.
_base_ = [
    '../../../configs/_base_/models/pixel_sail_tiny.py',
    '../../../configs/_base_/datasets/shapes_world.py',
    '../../../configs/_base_/schedules/schedule_tiny.py',
    '../../../configs/_base_/default_runtime.py',
]
custom_imports = dict(imports=['tests.integration.test_training.evaluation_components'])
model = dict(backbone=dict(llm=dict(num_hidden_layers=5)))
custom_hooks = [dict(type='KillTestHook', batches=None, rank=0)]
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
