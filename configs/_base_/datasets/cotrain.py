# Readers of the co-training mix in the folder layout of the authors' release; each entry counts
# as often as the recipe lists it (`repeats`).
# The tokenizers of all Qwen2.5 sizes are the same.
tokenizer = 'Qwen/Qwen2.5-0.5B'
patch_size = 16
max_length = 8192

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=patch_size, max_size=1024),
    dict(type='BuildConversation', tokenizer=tokenizer, max_length=max_length),
    # The experts of distillation see the image at its own size.
    dict(type='PackPixelInputs', keep_image=True),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=patch_size, max_size=1024),
    dict(type='BuildConversation', tokenizer=tokenizer, max_length=max_length, generation=True),
    dict(type='PackPixelInputs'),
]

refcoco = dict(
    type='RefCOCODataset',
    data_root='data/ref_seg/refcoco',
    ann_file='instances.json',
    split_file='refs(unc).p',
    data_prefix=dict(img_path='coco2014/train2014'),
    split='train',
    num_turns=5)
refcoco_plus = dict(refcoco, data_root='data/ref_seg/refcoco+')
refcocog = dict(refcoco, data_root='data/ref_seg/refcocog', split_file='refs(umd).p')
llava = dict(
    type='LLaVADataset',
    data_root='data/llava_data',
    ann_file='LLaVA-Instruct-150K/llava_v1_5_mix665k.json',
    data_prefix=dict(img_path='llava_images'))
osprey = dict(
    type='OspreyDataset',
    data_root='data/osprey-724k',
    ann_file='osprey_conversation.json',
    data_prefix=dict(img_path='../coco/train2014'))

train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='LengthGroupedSampler', length_property='modality_length',
                 per_device_batch_size=8),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='MixtureDataset',
        pipeline=train_pipeline,
        datasets=[refcoco, refcoco_plus, refcocog, llava, osprey],
        repeats=[4, 4, 4, 1, 1]))

eval_loader = dict(
    batch_size=8,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'))
val_dataloader = [
    dict(eval_loader, dataset=dict(refcoco, split='val', test_mode=True, pipeline=test_pipeline))
]
val_evaluator = [dict(type='RefSegMetric', prefix='refcoco_val')]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
