# The same, with a neck that has weights of its own and an expert that knows only some images.
_base_ = './mixed_config.py'
model = dict(
    neck=dict(_delete_=True, type='WeighedChannels'),
    distill=[dict(type='ExpertDistillLoss', expert=dict(type='SomeMapsExpert'), feature='neck',
                  expert_channels=4, name='maps')])
