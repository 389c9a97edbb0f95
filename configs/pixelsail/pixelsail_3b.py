# Co-training of the 3B model, 8 GPUs:
#   tools/dist_train.sh configs/pixelsail/pixelsail_3b.py 8
# Hidden size 2048 > 1024: the upsampler gets its pre-projector and works at 1024 channels.
_base_ = './pixelsail_0.5b.py'

from pixelsail_mm.datasets.manifest import dataset_cfg

model = dict(
    tokenizer='Qwen/Qwen2.5-3B',
    backbone=dict(llm='Qwen/Qwen2.5-3B'))

# The mix of the 0.5B model, and descriptions of regions of SA-1B.
mix = _base_.train_dataloader.dataset
train_dataloader = dict(dataset=dict(
    datasets=[*mix.datasets,
              dataset_cfg('sam_region', root=_base_.data_root, index_cache=_base_.index_cache)],
    repeats=[*mix.repeats, 1]))
del mix
