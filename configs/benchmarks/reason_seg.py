# ReasonSeg, val and test: gIoU and cIoU of indirect questions, without the pixels to ignore.
#   python tools/test.py configs/benchmarks/reason_seg.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

test_dataloader = evaluation_loaders(
    'reason_seg', _base_.eval_loader, root=_base_.data_root, pipeline=_base_.test_pipeline)
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'reason_seg_{split}'))
    for split in evaluation_splits('reason_seg')
]
