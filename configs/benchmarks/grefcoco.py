# gRefCOCO, val, testA and testB: cIoU, gIoU, Pr@t, N-acc, T-acc for any number of targets.
# As in ReLA, Pr@t is over the expressions with a target, and a prediction below 50 pixels is empty.
#   python tools/test.py configs/benchmarks/grefcoco.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

test_dataloader = evaluation_loaders(
    'grefcoco', _base_.eval_loader, root=_base_.data_root, pipeline=_base_.test_pipeline)
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'grefcoco_{split}', select='union',
                        precision='targeted', thresholds=(0.5, 0.7, 0.8, 0.9), empty_below=50))
    for split in evaluation_splits('grefcoco')
]
