# Captions of RefCOCOg's regions, val: METEOR and CIDEr. METEOR needs Java and pycocoevalcap.
#   python tools/test.py configs/benchmarks/region_caption.py CHECKPOINT --out result.json
_base_ = []

from pixelsail_mm.datasets.manifest import evaluation_loaders
from pixelsail_mm.evaluation.protocols import both_protocols

model_config = 'pixelsail_mm::pixelsail/pixelsail_0.5b.py'  # or that of --model
test_dataloader = evaluation_loaders('refcocog_region')
test_evaluator = [both_protocols(dict(type='CaptionMetric', prefix='refcocog_region'))]
