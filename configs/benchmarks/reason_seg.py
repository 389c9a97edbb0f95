# ReasonSeg, val and test: gIoU and cIoU of indirect questions, without the pixels to ignore.
#   python tools/test.py configs/benchmarks/reason_seg.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import dataset_cfg, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

splits = evaluation_splits('reason_seg')
test_dataloader = [
    dict(_base_.eval_loader, dataset=dataset_cfg(
        'reason_seg', root=_base_.data_root, evaluation=split,
        pipeline=_base_.test_pipeline))
    for split in splits
]
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'reason_seg_{split}')) for split in splits
]
