# Captions of RefCOCOg's regions, val: METEOR and CIDEr. METEOR needs Java and pycocoevalcap.
#   python tools/test.py configs/benchmarks/region_caption.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import evaluation_loaders
from pixelsail_mm.evaluation.protocols import both_protocols

test_dataloader = evaluation_loaders(
    'refcocog_region', _base_.eval_loader, root=_base_.data_root, pipeline=_base_.test_pipeline)
test_evaluator = [both_protocols(dict(type='CaptionMetric', prefix='refcocog_region'))]
