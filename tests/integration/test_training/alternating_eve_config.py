# The same with an EVEv2 transformer.
_base_ = './alternating_config.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='EVETransformer',
        patch_size=8,
        patch_channels=32,
        llm=_base_.model.backbone.llm,
    ),
    prompt_injector=dict(_delete_=True, type='VisualPromptInjector', project=False),
)
train_pipeline = _base_.train_pipeline
train_pipeline[4].update(image_layout='rows')
mixed, text = _base_.train_dataloader.dataset.datasets
train_dataloader = dict(
    dataset=dict(
        datasets=[dict(mixed, pipeline=train_pipeline), dict(text, pipeline=train_pipeline)]
    )
)
del mixed, text
