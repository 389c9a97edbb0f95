# Fine-tune a model that ships with the repository on data of your own, on a CPU in minutes:
#   python tools/train.py configs/pixelsail/pixelsail_tiny_custom.py
# docs/custom_data.md goes through it. PIXELSAIL_DATA names another folder than data/mine.
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/schedules/schedule_tiny.py',
    '../_base_/default_runtime.py'
]

# --- what to change for data and a model of your own ---
data_root = '{{$PIXELSAIL_DATA:data/mine}}'
start = 'demo/checkpoints/pixelsail_tiny_grounding'
max_iters = 400
turns_per_image = 12
max_size = 160  # longest side of an image in pixels; larger ones are scaled down

tokenizer = start
load_from = start + '/model.safetensors'
# Its eyes are open: no expert is needed.
model = dict(tokenizer=tokenizer, backbone=dict(llm=dict(num_hidden_layers=5)), distill=[])
optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98)))
train_cfg = dict(max_iters=max_iters)
custom_hooks = []

# Patches and chat template are those the model was trained with.
load_stages = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=8, max_size=max_size),
]
tokens = dict(
    type='BuildConversation',
    tokenizer=tokenizer,
    template=dict(INSTRUCTION='{input}\n', SUFFIX='<|endoftext|>', SEP=''),
    max_length=1024)
# A turn sees the image and itself: many phrases share the work on one image.
train_pipeline = [*load_stages, dict(tokens, independent_turns=True), dict(type='PackPixelInputs')]
test_pipeline = [*load_stages, dict(tokens, generation=True), dict(type='PackPixelInputs')]

mine = dict(
    type='PixelChatDataset',
    data_root=data_root,
    data_prefix=dict(img_path='images', mask_path='masks'),
    shuffle_turns=True)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(mine, ann_file='train.json', max_turns=turns_per_image, pipeline=train_pipeline))
val_dataloader = [
    dict(
        batch_size=32,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_sampler=dict(type='EvaluationBatchSampler'),
        collate_fn=dict(type='pseudo_collate'),
        dataset=dict(mine, ann_file='val.json', test_mode=True, pipeline=test_pipeline))
]
val_evaluator = [dict(type='RefSegMetric', prefix='refseg', tasks=['refseg'], select='paired')]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
