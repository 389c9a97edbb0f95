# RefCOCOg, val and test: cIoU, gIoU, Pr@X.
#   python tools/test.py configs/benchmarks/refcocog.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import dataset_cfg, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

splits = evaluation_splits('refcocog')
test_dataloader = [
    dict(_base_.eval_loader, dataset=dataset_cfg(
        'refcocog', root=_base_.data_root, evaluation=split,
        pipeline=_base_.test_pipeline))
    for split in splits
]
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'refcocog_{split}')) for split in splits
]
