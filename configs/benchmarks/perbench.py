# PerBench: detailed captions, multiple choice, visual-text referring segmentation, overall score.
# Both protocols are in the result; METEOR needs Java and pycocoevalcap, that of `paper` NLTK.
#   python tools/test.py configs/benchmarks/perbench.py CHECKPOINT --out result.json
_base_ = []

from pixelsail_mm.datasets.manifest import dataset_cfg

model_config = 'pixelsail_mm::pixelsail/pixelsail_0.5b.py'  # or that of --model
test_dataloader = [dict(dataset=dict(
    type='MixtureDataset',
    datasets=[dataset_cfg(name, evaluation='test')
              for name in ('perbench_caption', 'perbench_mcq', 'perbench_vres')]))]
test_evaluator = [dict(type='PerBenchMetric')]
