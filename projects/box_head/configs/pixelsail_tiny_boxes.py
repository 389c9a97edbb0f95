# Boxes beside masks on ShapesWorld, from the grounding weights that ship. From the root of the
# repository, after the data of configs/pixelsail/pixelsail_tiny_grounding.py:
#   tools/dist_train.sh projects/box_head/configs/pixelsail_tiny_boxes.py 2
_base_ = '../../../configs/pixelsail/pixelsail_tiny_grounding.py'

custom_imports = dict(imports=['box_head'])
load_from = 'demo/checkpoints/pixelsail_tiny_grounding/model.safetensors'
model = dict(heads=dict(box=dict(type='SegTokenBoxHead')), distill=[])

boxes = dict(type='LoadBoxes')
train_pipeline = [*_base_.train_pipeline[:2], boxes, *_base_.train_pipeline[2:]]
test_pipeline = [*_base_.test_pipeline[:2], boxes, *_base_.test_pipeline[2:]]
# `with_boxes`: the annotations' own boxes, where the data set has them.
train_dataloader = dict(dataset=dict(
    pipeline=train_pipeline,
    datasets=[dict(part, with_boxes=True) if part['type'] == 'RefCOCODataset' else part
              for part in _base_.train_dataloader.dataset.datasets]))
eval_refcoco = dict(_base_.eval_refcoco, pipeline=test_pipeline, with_boxes=True)
val_dataloader = [dict(_base_.eval_loader, dataset=dict(eval_refcoco, split='val'))]
test_dataloader = [dict(_base_.eval_loader, dataset=dict(eval_refcoco, split='test'))]
val_evaluator = [[dict(type='BoxMetric'), dict(type='RefSegMetric', prefix='refseg')]]
test_evaluator = [[dict(type='BoxMetric', group_by='expression_kind'),
                   dict(type='RefSegMetric', prefix='refseg', group_by='expression_kind')]]

optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_iters=5000)
custom_hooks = []
visualizer = dict(type='BoxVisualizer')
