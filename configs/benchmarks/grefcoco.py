# gRefCOCO, val, testA and testB: cIoU, gIoU, N-acc, T-acc of expressions with any number of targets.
#   python tools/test.py configs/benchmarks/grefcoco.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import dataset_cfg, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

splits = evaluation_splits('grefcoco')
test_dataloader = [
    dict(_base_.eval_loader, dataset=dataset_cfg(
        'grefcoco', root=_base_.data_root, evaluation=split,
        pipeline=_base_.test_pipeline))
    for split in splits
]
# A prediction of fewer than 50 pixels counts as "no target", the convention of this data set.
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'grefcoco_{split}', select='union',
                        empty_below=50))
    for split in splits
]
