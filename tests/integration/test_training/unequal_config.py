# Two processes whose batches hold other numbers of images, masks and prompts; unequal_run.py fills
# in the tokenizer, the steps and what is beside the mask head.
_base_ = ['../../../configs/_base_/default_runtime.py']
custom_imports = dict(
    imports=[
        'projects.box_head.box_head',
        'tests.test_engine.mixed_components',
        'tests.test_engine.unequal_components',
        'tests.test_models.test_heads.point_head',
    ]
)
model = dict(
    type='PixelSAIL',
    tokenizer='',
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
    batch_size=1,  # of draws, each of which is a batch
    num_workers=0,
    collate_fn=dict(type='whole_batch'),
    dataset=dict(type='UnequalBatches', tokenizer='', steps=dict(mode='every')),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
# Without momentum, decay and clipping a step is the learning rate times the gradient.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05))
param_scheduler = []
train_cfg = dict(type='PixelTrainLoop', max_iters=1)
# Longer than the hook's own limit, which says where it happened.
env_cfg = dict(dist_cfg=dict(timeout=120))
default_hooks = dict(
    logger=dict(interval=1000), checkpoint=None, export_weights=None, param_scheduler=None
)
visualizer = None
val_cfg = None
test_cfg = None
