# Single-transformer pre-training, stage 3 of 3: captions mixed with plain text, larger pictures.
#   tools/dist_train.sh configs/sail/sail_0.5b_stage3.py 8
# Its weights are the base for co-training:
#   tools/dist_train.sh configs/pixelsail/pixelsail_0.5b.py 8 \
#       --cfg-options load_from=work_dirs/sail_0.5b_stage3/model.safetensors
_base_ = './sail_0.5b_stage2.py'

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
for pipeline in (train_pipeline, test_pipeline):
    pipeline[3] = dict(type='ResizeToGrid', patch_size=_base_.patch_size, max_size=1024)
    # A picture of 1024x1024 has 4,098 tokens.
    pipeline[4].max_length = 5120
del pipeline
train_dataloader = dict(
    batch_size=2,
    sampler=dict(per_device_batch_size=2),
    dataset=dict(
        pipeline=train_pipeline,
        datasets=[_base_.captions, _base_.plain_text],
        # Two of ten samples are text ...
        weights=[8, 2]))
# ... and each of its tokens counts this often in the loss.
model = dict(lm_loss_weight_text_only=1.0)
optim_wrapper = dict(optimizer=dict(lr=2e-5), accumulative_counts=16)
load_from = 'work_dirs/sail_0.5b_stage2/model.safetensors'
