# Grounded caption generation, GranD-f val and test: AP50, mIoU, recall, METEOR and CIDEr.
# METEOR needs Java and pycocoevalcap. Recall compares phrases by their words; for the published one
# give the folder of a BERT: similarity=dict(type='bert_cosine', path='...').
#   python tools/test.py configs/benchmarks/gcg.py CHECKPOINT --out result.json
_base_ = []

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

model_config = 'pixelsail_mm::pixelsail/pixelsail_0.5b.py'  # or that of --model
test_dataloader = evaluation_loaders('grandf')
test_evaluator = [
    both_protocols(dict(type='GCGMetric', prefix=f'gcg_{split}'))
    for split in evaluation_splits('grandf')
]
