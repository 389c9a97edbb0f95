# gRefCOCO, val, testA and testB: cIoU, gIoU, Pr@t, N-acc, T-acc for any number of targets.
# As in ReLA, Pr@t is over the expressions with a target, and a prediction below 50 pixels is empty.
#   python tools/test.py configs/benchmarks/grefcoco.py CHECKPOINT --out result.json
_base_ = []

from pixelsail_mm.datasets.manifest import evaluation_loaders, evaluation_splits
from pixelsail_mm.evaluation.protocols import both_protocols

model_config = 'pixelsail_mm::pixelsail/pixelsail_0.5b.py'  # or that of --model
test_dataloader = evaluation_loaders('grefcoco')
test_evaluator = [
    both_protocols(dict(type='RefSegMetric', prefix=f'grefcoco_{split}', select='union',
                        precision='targeted', thresholds=(0.5, 0.7, 0.8, 0.9), empty_below=50))
    for split in evaluation_splits('grefcoco')
]
