# Co-training of the 0.5B model with distillation from Mask2Former and SAM 2, 8 GPUs:
#   tools/dist_train.sh configs/pixelsail/pixelsail_0.5b.py 8
# The single-transformer pre-trained base of the paper was never published: this starts from the
# public text-only Qwen2.5-0.5B. Data: the readers of _base_/datasets/cotrain.py.
_base_ = [
    '../_base_/models/pixel_sail.py', '../_base_/datasets/cotrain.py',
    '../_base_/schedules/schedule_cotrain.py', '../_base_/default_runtime.py'
]

model = dict(
    # DeepSpeed keeps float32 copies of what trains; without it training is in float32.
    backbone=dict(dtype='bfloat16', gradient_checkpointing=True),
    distill=[
        dict(
            type='ExpertDistillLoss',
            name='mask2former',
            feature='neck',
            loss_weight=0.5,
            expert=dict(
                type='Mask2FormerExpert',
                model='facebook/mask2former-swin-large-coco-panoptic',
                size=800)),
        dict(
            type='ExpertDistillLoss',
            name='sam2',
            feature='backbone',
            loss_weight=0.5,
            expert=dict(type='SAM2Expert', model='facebook/sam2.1-hiera-large', size=1024)),
    ])
