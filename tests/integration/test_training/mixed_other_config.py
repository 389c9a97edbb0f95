# The same, with a neck that has weights of its own, an expert that knows only some images, and a
# second head whose targets lack more often than the masks.
_base_ = './mixed_config.py'
custom_imports = dict(
    imports=['tests.test_engine.mixed_components', 'tests.test_models.test_heads.point_head']
)
model = dict(
    heads=dict(point=dict(type='PointHead')),
    neck=dict(_delete_=True, type='WeighedChannels'),
    distill=[
        dict(
            type='ExpertDistillLoss',
            expert=dict(type='SomeMapsExpert'),
            feature='neck',
            expert_channels=4,
            name='maps',
        )
    ],
)
