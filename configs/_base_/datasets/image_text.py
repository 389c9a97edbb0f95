# Pre-training data of a single transformer: pictures with captions, and text without pictures.
# Captions: LLaVA-Pretrain, see docs/datasets.md. Text: any conversations in the LLaVA format whose
# entries have no `image`. PIXELSAIL_DATA names another folder than `data`, PIXELSAIL_BASE another
# language model than Qwen2.5-0.5B.
# Without a `_base_` in front of it MMEngine takes a config with an import for one of the lazy kind.
_base_ = []

from pixelsail_mm.datasets.manifest import dataset_cfg

data_root = '{{$PIXELSAIL_DATA:data}}'
tokenizer = '{{$PIXELSAIL_BASE:Qwen/Qwen2.5-0.5B}}'
patch_size = 16

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    # Small pictures first: four times as many of them in the same time.
    dict(type='ResizeToGrid', patch_size=patch_size, max_size=512),
    dict(type='BuildConversation', tokenizer=tokenizer, max_length=2048),
    dict(type='PackPixelInputs'),
]
test_pipeline = [
    *train_pipeline[:4],
    dict(type='BuildConversation', tokenizer=tokenizer, max_length=2048, generation=True),
    dict(type='PackPixelInputs'),
]

index_cache = data_root + '/.index_cache'
captions = dataset_cfg('llava_pretrain', root=data_root, index_cache=index_cache)
plain_text = dict(
    type='LLaVADataset',
    data_root=data_root,
    ann_file='text/conversations.json',
    index_cache=index_cache)

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='LengthGroupedSampler', length_property='modality_length',
                 per_device_batch_size=8),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='MixtureDataset', pipeline=train_pipeline, datasets=[captions]))
