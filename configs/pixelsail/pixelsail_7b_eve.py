# Co-training of the 7B model, an EVEv2 transformer with visual weights in every layer, 8 GPUs:
#   tools/dist_train.sh configs/pixelsail/pixelsail_7b_eve.py 8 --deepspeed zero3
# With its visual weights it has nearly twice the parameters of Qwen2.5-7B, from which it starts:
# visual weights are copies, the patch embedding is random. To start from EVE-7B-HD-v2.0 instead:
#   python tools/model_converters/eve_to_mm.py EVE_FOLDER eve.safetensors \
#       --tokenizer Qwen/Qwen2.5-7B
# and add --cfg-options load_from=eve.safetensors.
# As in the release nothing is distilled; the mix of data is that of pixelsail_0.5b.py, while the
# release's had neither gRefCOCO nor the classes of COCO as visual prompts.
_base_ = './pixelsail_0.5b.py'

tokenizer = 'Qwen/Qwen2.5-7B'
patch_size = 32
# About 625 patches per image whatever its aspect ratio; 1600 gives about 2500.
max_size = 800
max_length = 4096  # with the tokens of the image

model = dict(
    tokenizer=tokenizer,
    # Mean and deviation of CLIP.
    data_preprocessor=dict(
        mean=(122.7709383, 116.7460125, 104.09373615),
        std=(68.5005327, 66.6321579, 70.32316305)),
    backbone=dict(type='EVETransformer', llm='Qwen/Qwen2.5-7B', patch_size=patch_size),
    prompt_injector=dict(project=False),
    # Stride 2 of 32: four blocks. The width of 3584 > 1024 passes the pre-projector first.
    mask_head=dict(embed_channels=256),
    distill=[])

resize = dict(type='ResizeToGrid', patch_size=patch_size, max_size=max_size, rule='area',
              interpolation='bicubic')
conversation = dict(
    type='BuildConversation',
    tokenizer=tokenizer,
    template='qwen_chat',
    max_length=max_length,
    image_layout='rows',
    image_in_question=True)
load_stages = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadIgnoreMasks'),
    dict(type='LoadVisualPrompts'),
]
train_pipeline = [
    *load_stages,
    resize,
    conversation,
    dict(type='PackPixelInputs', keep_image=True),
]
test_pipeline = [
    *load_stages,
    resize,
    dict(conversation, generation=True),
    dict(type='PackPixelInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_loader = _base_.val_dataloader[0]
val_dataloader = [dict(val_loader, dataset=dict(val_loader.dataset, pipeline=test_pipeline))]
test_dataloader = val_dataloader
del val_loader
