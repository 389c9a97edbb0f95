# Pixel-SAIL at the size of the 0.5B release. Widths that follow from another part are filled in
# by the meta-architecture, so swapping a component is one line.
model = dict(
    type='PixelSAIL',
    tokenizer='Qwen/Qwen2.5-0.5B',
    data_preprocessor=dict(type='PixelDataPreprocessor'),
    backbone=dict(type='SingleTransformer', llm='Qwen/Qwen2.5-0.5B', patch_size=16),
    prompt_injector=dict(type='VisualPromptInjector'),
    # out_stride=2 is what the authors' release computes, the paper says 4.
    neck=dict(type='LearnableUpsampler', out_stride=2),
    mask_head=dict(
        type='SegTokenMaskHead',
        embed_channels=512,
        num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        # Equal up to rounding; off where a distillation reads the projected features.
        fold_projector=True,
        loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0),
        loss_dice=dict(type='DiceLoss', naive_dice=True, eps=1.0, loss_weight=0.5)),
    distill=[],
    lm_loss_weight=1.0,
    lm_loss_weight_with_masks=0.1,
    generation=dict(max_new_tokens=512, do_sample=False))
