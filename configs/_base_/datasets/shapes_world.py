# ShapesWorld, drawn by tools/dataset_converters/make_shapes_world.py in the public formats of
# RefCOCO, LLaVA and Osprey, so that the readers of the real data sets read it.
# PIXELSAIL_DATA names another folder.
data_root = '{{$PIXELSAIL_DATA:data/shapes_world}}'
tokenizer = data_root + '/tokenizer'
patch_size = 8
# Short wordings and a template without chat markup: a small model has no compute to spare for
# tokens around an expression, and nearby words are found sooner.
template = dict(INSTRUCTION='{input}\n', SUFFIX='<|endoftext|>', SEP='')
questions = ['Please segment {x}.']
answers = ['[SEG].']
test_question = questions[0]

load_stages = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=patch_size, max_size=1024),
]
train_pipeline = [
    *load_stages,
    # A turn sees the image and itself: many single-turn samples share the work on one image.
    dict(type='BuildConversation', tokenizer=tokenizer, template=template, max_length=1024,
         independent_turns=True),
    dict(type='PackPixelInputs'),
]
test_pipeline = [
    *load_stages,
    dict(type='BuildConversation', tokenizer=tokenizer, template=template, max_length=1024,
         generation=True),
    dict(type='PackPixelInputs'),
]

refcoco = dict(
    type='RefCOCODataset',
    data_root=data_root,
    ann_file='refcoco/instances.json',
    split_file='refcoco/refs(unc).p',
    data_prefix=dict(img_path='images'),
    questions=questions,
    answers=answers,
    test_question=test_question)
osprey = dict(
    type='OspreyDataset',
    data_root=data_root,
    data_prefix=dict(img_path='images'),
    only_mentioned=True)

# One sample joins turns of several readers about one image: objects ("the red star"), groups
# ("every red shape", which open the way to conjunctions) and questions about visual prompts.
train_dataloader = dict(
    # In the first minutes a batch of 4 learns more from as many images than one of 8.
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='MergedDataset',
        pipeline=train_pipeline,
        turns=[5, 4, 3],
        datasets=[
            dict(refcoco, split='train', replacement=False),
            dict(refcoco, split='train', replacement=False,
                 ann_file='refcoco_group/instances.json',
                 split_file='refcoco_group/refs(unc).p'),
            dict(osprey, ann_file='osprey/osprey_train.json', shuffle_turns=True, max_regions=1),
        ]))

eval_loader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    batch_sampler=dict(type='EvaluationBatchSampler'),
    collate_fn=dict(type='pseudo_collate'))
eval_refcoco = dict(refcoco, pipeline=test_pipeline, test_mode=True)
eval_osprey = dict(osprey, pipeline=test_pipeline, test_mode=True)

val_dataloader = [
    dict(eval_loader, dataset=dict(eval_refcoco, split='val')),
    dict(eval_loader, dataset=dict(eval_osprey, ann_file='osprey/osprey_val.json')),
]
val_evaluator = [
    dict(type='RefSegMetric', prefix='refseg'),
    dict(type='MultipleChoiceMetric', prefix='mcq'),
]
# The control asks for what another image shows: a model that does not listen scores as high.
test_dataloader = [
    dict(eval_loader, dataset=dict(eval_refcoco, split='test')),
    dict(eval_loader, dataset=dict(eval_osprey, ann_file='osprey/osprey_test.json')),
    dict(eval_loader, dataset=dict(eval_refcoco, split='test', shuffle_expressions=True)),
]
test_evaluator = [
    dict(type='RefSegMetric', prefix='refseg', group_by='expression_kind'),
    dict(type='MultipleChoiceMetric', prefix='mcq'),
    dict(type='RefSegMetric', prefix='shuffled'),
]
