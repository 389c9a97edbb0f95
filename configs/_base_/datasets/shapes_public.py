# The co-training mix on ShapesWorld, drawn and written in the folders of the public data sets by
#   python tools/dataset_converters/make_shapes_world.py --preset full --out data/shapes_world
#   python tools/dataset_converters/shapes_world_to_public.py data/shapes_world data/shapes_public
# PIXELSAIL_DATA names another folder.
_base_ = []

from pixelsail_mm.datasets.manifest import dataset_cfg

data_root = '{{$PIXELSAIL_DATA:data/shapes_public}}'
tokenizer = data_root + '/tokenizer'
patch_size = 8
template = dict(INSTRUCTION='{input}\n', SUFFIX='<|endoftext|>', SEP='')

load_stages = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadIgnoreMasks'),
    dict(type='LoadVisualPrompts'),
]
resize = dict(type='ResizeToGrid', patch_size=patch_size, max_size=1024)
tokens = dict(type='BuildConversation', tokenizer=tokenizer, template=template)
train_pipeline = [
    *load_stages,
    dict(type='PromptTypeAugment'),
    resize,
    # A turn sees the image and itself: many single-turn samples share the work on one image.
    dict(tokens, max_length=480, independent_turns=True),
    dict(type='PackPixelInputs'),
]
test_pipeline = [
    *load_stages,
    resize,
    dict(tokens, max_length=1024, generation=True),
    dict(type='PackPixelInputs'),
]

# Shares of all data sets that the recipe's models see, and of our own format. Those of the recipe
# (manifest.yml) are for models that can read; this one has to learn to segment from few samples.
weights = dict(
    refcoco=4, refcoco_plus=2, refcocog=2, grefcoco=3, coco_semantic=1, coco_panoptic=1,
    openpsg_gcg=1, flickr_gcg=1, refcocog_gcg=1, grandf=2, muse=1, pix2cap_seg=1, pix2cap_region=1,
    osprey_description=1, osprey_conversation=4, osprey_part=0.5, osprey_lvis=1, osprey_short=1,
    coco_region_class=0.5, llava=1, sam_region=0.5, refcocog_region=1.5, reason_seg=2,
    llava_pretrain=0.5)
pixel_chat = dict(
    type='PixelChatDataset',
    data_root=data_root,
    ann_file='pixel_chat/pixel_chat_train.json',
    data_prefix=dict(img_path='pixel_chat/images', mask_path='pixel_chat/masks'))

train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='MixtureDataset',
        pipeline=train_pipeline,
        datasets=[*(dataset_cfg(name, root=data_root) for name in weights), pixel_chat],
        weights=[*weights.values(), 4]))

eval_loader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    batch_sampler=dict(type='EvaluationBatchSampler'),
    collate_fn=dict(type='pseudo_collate'))
val_dataloader = [
    dict(eval_loader, dataset=dataset_cfg('refcoco', root=data_root, evaluation='val',
                                          pipeline=test_pipeline))
]
val_evaluator = [dict(type='RefSegMetric', prefix='refcoco_val')]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
