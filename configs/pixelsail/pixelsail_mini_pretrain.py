# First stage of pixelsail_mini.py: learn to see. Nearly all compute goes to images, which the
# expert explains; one group expression per image shows what words are for.
_base_ = './pixelsail_mini.py'

train_dataloader = dict(
    batch_size=16, dataset=dict(turns=[1], datasets=[{{_base_.groups}}]))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=400)
custom_hooks = []
