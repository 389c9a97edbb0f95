# RefCOCO, val, testA and testB: cIoU, gIoU, Pr@X.
#   python tools/test.py configs/benchmarks/refcoco.py CHECKPOINT --out result.json
_base_ = []

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

model_config = 'pixelsail_mm::pixelsail/pixelsail_0.5b.py'  # or that of --model
test_dataloader = evaluation_loaders('refcoco')
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'refcoco_{split}'))
    for split in evaluation_splits('refcoco')
]
