# Two processes whose batches hold other numbers of images, masks and prompts, see
# mixed_components.py. PIXELSAIL_TEST_TOKENIZER must name a folder with a tokenizer.
_base_ = [
    '../../../configs/_base_/default_runtime.py',
    '../../../configs/_base_/schedules/schedule_tiny.py',
]
custom_imports = dict(imports=['tests.test_engine.mixed_components'])
model = dict(
    type='PixelSAIL',
    tokenizer='{{$PIXELSAIL_TEST_TOKENIZER:}}',
    backbone=dict(
        type='SingleTransformer',
        patch_size=8,
        llm=dict(
            model_type='qwen2',
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
    ),
    prompt_injector=dict(type='VisualPromptInjector'),
    neck=dict(type='LearnableUpsampler', out_stride=2),
    mask_head=dict(type='SegTokenMaskHead', embed_channels=16, num_points=None),
    distill=[],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='MixedBatches', tokenizer='{{$PIXELSAIL_TEST_TOKENIZER:}}'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
# A rank that waits in vain fails after a minute instead of half an hour.
env_cfg = dict(dist_cfg=dict(timeout=60))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1000))
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
val_cfg = None
test_cfg = None
custom_hooks = []
