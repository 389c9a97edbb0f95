# Single-transformer pre-training, stage 2 of 3: the whole transformer, on pictures with captions.
# Mask head, upsampler and prompt injector wait for co-training, their weights stay as drawn.
#   tools/dist_train.sh configs/sail/sail_0.5b_stage2.py 8
_base_ = './sail_0.5b_stage1.py'

model = dict(trainable=['backbone'])
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=0.05))
load_from = 'work_dirs/sail_0.5b_stage1/model.safetensors'
