# The co-training mix of the recipe: every data set of datasets/manifest/manifest.yml with
# `repeats`, as often as the recipe lists it. Where the files lie and come from: docs/datasets.md;
# what is missing: python tools/misc/check_data.py CONFIG. PIXELSAIL_DATA names another folder than
# `data`.
# Without a `_base_` in front of it MMEngine takes a config with an import for one of the lazy kind.
_base_ = []

from pixelsail_mm.datasets.manifest import dataset_cfg, load_manifest

data_root = '{{$PIXELSAIL_DATA:data}}'
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
    dict(type='LoadIgnoreMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=patch_size, max_size=1024),
    dict(type='BuildConversation', tokenizer=tokenizer, max_length=max_length, generation=True),
    dict(type='PackPixelInputs'),
]

# Annotations are parsed once and kept here, next to true token lengths.
index_cache = data_root + '/.index_cache'
repeats = {name: entry['repeats'] for name, entry in load_manifest()['datasets'].items()
           if 'repeats' in entry}

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
        datasets=[dataset_cfg(name, root=data_root, index_cache=index_cache) for name in repeats],
        repeats=list(repeats.values())))

eval_loader = dict(
    batch_size=8,
    num_workers=4,
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
