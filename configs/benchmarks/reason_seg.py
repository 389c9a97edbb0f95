# ReasonSeg, val and test: gIoU and cIoU of indirect questions, without the pixels to ignore.
#   python tools/test.py configs/benchmarks/reason_seg.py CHECKPOINT --out result.json
_base_ = []

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

model_config = 'pixelsail_mm::pixelsail/pixelsail_0.5b.py'  # or that of --model
test_dataloader = evaluation_loaders('reason_seg')
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'reason_seg_{split}'))
    for split in evaluation_splits('reason_seg')
]
