# Samples with an image and of text only in turn: of two processes one never sees an image.
# PIXELSAIL_DATA must name a ShapesWorld folder that also holds text_only.json.
_base_ = ['../../../configs/pixelsail/pixelsail_mini.py']
custom_imports = dict(imports=['tests.test_engine.toy_components'])
train_dataloader = dict(
    batch_size=1,
    sampler=dict(shuffle=False),
    dataset=dict(
        _delete_=True,
        type='AlternatingDataset',
        datasets=[
            {{_base_.train_dataloader.dataset}},
            dict(
                type='LLaVADataset',
                data_root='{{$PIXELSAIL_DATA:data/shapes_world}}',
                ann_file='text_only.json',
                pipeline={{_base_.train_pipeline}},
            ),
        ],
    ),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=100))
