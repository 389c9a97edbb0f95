# Grounded caption generation, GranD-f val and test: AP50, mIoU, recall, METEOR and CIDEr.
# METEOR needs Java and pycocoevalcap. Recall compares phrases by their words; for the published one
# give the folder of a BERT: similarity=dict(type='bert_cosine', path='...').
#   python tools/test.py configs/benchmarks/gcg.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

test_dataloader = evaluation_loaders(
    'grandf', _base_.eval_loader, root=_base_.data_root, pipeline=_base_.test_pipeline)
test_evaluator = [
    both_protocols(dict(type='GCGMetric', prefix=f'gcg_{split}'))
    for split in evaluation_splits('grandf')
]
