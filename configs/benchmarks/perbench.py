# PerBench: detailed captions, multiple choice, visual-text referring segmentation, overall score.
# Both protocols are in the result; METEOR needs Java and pycocoevalcap, that of `paper` NLTK.
#   python tools/test.py configs/benchmarks/perbench.py CHECKPOINT --out result.json
_base_ = '{{$PIXELSAIL_MODEL:../pixelsail/pixelsail_0.5b.py}}'

from pixelsail_mm.datasets.manifest import dataset_cfg

test_dataloader = [dict(_base_.eval_loader, dataset=dict(
    type='MixtureDataset',
    pipeline=_base_.test_pipeline,
    datasets=[dataset_cfg(name, root=_base_.data_root, evaluation='test')
              for name in ('perbench_caption', 'perbench_mcq', 'perbench_vres')]))]
test_evaluator = [dict(type='PerBenchMetric')]
