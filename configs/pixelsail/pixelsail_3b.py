# Co-training of the 3B model, 8 GPUs:
#   tools/dist_train.sh configs/pixelsail/pixelsail_3b.py 8
# Hidden size 2048 > 1024: the upsampler gets its pre-projector and works at 1024 channels.
_base_ = './pixelsail_0.5b.py'

model = dict(
    tokenizer='Qwen/Qwen2.5-3B',
    backbone=dict(llm='Qwen/Qwen2.5-3B'))
