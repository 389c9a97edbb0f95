# Single-transformer pre-training, stage 1 of 3: a text-only language model gets eyes. Only the patch
# embedding trains, on pictures with captions:
#   tools/dist_train.sh configs/sail/sail_0.5b_stage1.py 8
_base_ = [
    '../_base_/models/pixel_sail.py', '../_base_/datasets/image_text.py',
    '../_base_/schedules/schedule_cotrain.py', '../_base_/default_runtime.py'
]

model = dict(
    tokenizer='{{$PIXELSAIL_BASE:Qwen/Qwen2.5-0.5B}}',
    backbone=dict(
        llm='{{$PIXELSAIL_BASE:Qwen/Qwen2.5-0.5B}}', dtype='bfloat16',
        gradient_checkpointing=True),
    # Moved all at once, the language model forgets how to speak before the patches say anything.
    trainable=['backbone.patch_embed'])

optim_wrapper = dict(optimizer=dict(lr=4e-4, weight_decay=0.0), accumulative_counts=4)
# A stage is judged by its loss; the benchmarks follow after co-training.
val_cfg = None
test_cfg = None
