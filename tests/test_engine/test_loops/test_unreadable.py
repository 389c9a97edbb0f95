"""Samples that cannot be read fail the metric of a validation, not the training; and a test."""

import math
from itertools import count
from pathlib import Path

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from pixelsail_mm.config import read_config
from pixelsail_mm.datasets.files.skip_counter import SkipCounter
from pixelsail_mm.datasets.sample_source import SampleSource
from pixelsail_mm.engine.loops.unreadable import listing, of_all_processes, sort_batches
from pixelsail_mm.engine.runner_factory import build_runner, build_test_runner
from pixelsail_mm.errors import BadSampleError, NoUsableSampleError
from pixelsail_mm.evaluation.metrics.base import PixelMetric
from pixelsail_mm.registry import DATASETS, METRICS

CONFIG = Path(__file__).parents[1] / 'toy_config.py'
numbers = count()


@DATASETS.register_module()
class Pictures(SampleSource, Dataset):
    """Token sequences of length 4; those in ``bad`` have an image that cannot be read."""

    def __init__(self, length=5, bad=(), name='pictures', test_mode=True):
        self.length, self.bad, self.name, self.test_mode = length, list(bad), name, test_mode
        self.seed, self.max_refetch = 0, 3
        self._skips, self._notes = SkipCounter(), SkipCounter()

    def __len__(self):
        return self.length

    def record(self, index, rng, num_turns=None):
        meta = dict(sample_id=str(index), dataset=self.name, task='other' if index else 'first')
        return dict(index=index, conversation=[], masks=[], prompts=[], meta=meta)

    def pipeline(self, record):
        if record['index'] in self.bad:
            raise BadSampleError(f'{record["index"]}.png', 'img_path', 'cannot be decoded')
        sample = BaseDataElement(metainfo=record['meta'])
        ids = torch.full((4,), record['index'])
        return dict(inputs=dict(input_ids=ids), data_samples=sample)


@METRICS.register_module()
class MeanScore(PixelMetric):
    """Mean of the toy's scores."""

    def score(self, sample):
        return dict(score=sample['score'])

    def summarise(self, records):
        return dict(mean=sum(record['score'] for record in records) / len(records))


def toy(folder, bad=(), workers=0, metrics=None, **options):
    """The toy's config with two sets to validate and test on: ``a`` has unreadable samples."""
    cfg = read_config(str(CONFIG), [f'{key}={value}' for key, value in options.items()])
    cfg.work_dir, cfg.experiment_name = str(folder), f'unreadable{next(numbers)}'
    cfg.launcher = 'none'
    for mode in ('val', 'test'):
        loaders = cfg[f'{mode}_dataloader']
        loaders[0].dataset = dict(type='Pictures', bad=list(bad))
        loaders[0].num_workers = workers
        cfg[f'{mode}_evaluator'][0] = metrics or dict(type='MeanScore', prefix='a')
    cfg.train_cfg.update(max_iters=2, val_interval=1)
    return cfg


def log_of(runner):
    return (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_validation_fails_its_metric_and_not_the_training(tmp_path, workers):
    runner = build_runner(toy(tmp_path, [1, 3], workers))
    runner.train()
    assert (tmp_path / 'model.safetensors').exists()
    values = runner.message_hub.log_scalars
    assert list(values['val/a/unreadable_samples'].data[0]) == [2, 2]
    assert all(map(math.isnan, values['val/a/mean'].data[0]))
    assert all(map(math.isfinite, values['val/b/mean'].data[0]))
    text = log_of(runner)
    assert text.count('2 of 5 samples of a cannot be read, so its metrics are NaN (of the oth') == 2
    assert '  3.png: img_path: cannot be decoded' in text


def test_all_can_be_read(tmp_path):
    runner = build_runner(toy(tmp_path))
    runner.train()
    assert 'val/a/unreadable_samples' not in runner.message_hub.log_scalars
    assert 'cannot be read' not in log_of(runner)


@pytest.mark.parametrize('best', ['auto', 'a/mean'])
@pytest.mark.parametrize('bad', [[], [2], range(5)])
def test_the_best_checkpoint_is_chosen_by_complete_numbers(tmp_path, best, bad):
    options = {'default_hooks.checkpoint.save_best': best, 'default_hooks.checkpoint.rule': 'less'}
    runner = build_runner(toy(tmp_path, bad, **options))
    runner.train()
    chosen = [path.name for path in tmp_path.glob('best_*.pth')]
    if not bad:
        assert len(chosen) == 1 and chosen[0].startswith('best_a_mean')
    elif bad == [2] or best == 'a/mean':
        assert not chosen
    else:  # of `a` there is no number at all
        assert [name[:11] for name in chosen] == ['best_b_mean']
    assert (tmp_path / 'model.safetensors').exists()


def test_no_sample_of_a_task_can_be_read(tmp_path):
    """The metric has nothing to compute; without faults that is a mistake in the config."""
    first = dict(type='MeanScore', prefix='a', tasks=['first'])
    runner = build_runner(toy(tmp_path, [0], metrics=first))
    runner.train()
    assert list(runner.message_hub.log_scalars['val/a/unreadable_samples'].data[0]) == [1, 1]
    with pytest.raises(ValueError, match='has no sample of task'):
        none = dict(first, tasks=['none'])
        build_runner(toy(tmp_path / 'other', metrics=none)).train()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_test_ends_with_the_first(tmp_path, workers):
    build_runner(toy(tmp_path)).train()
    runner = build_test_runner(toy(tmp_path, [1, 3], workers), str(tmp_path / 'model.safetensors'))
    with pytest.raises(BadSampleError, match=r'^1\.png: img_path: cannot be decoded$'):
        runner.test()


def test_of_a_mixture_each_is_named_once():
    both = ConcatDataset([Pictures(3, [2], 'one'), Pictures(3, [0, 2], 'two')])
    loader = DataLoader(both, batch_size=4, collate_fn=len)
    sort_batches(loader)
    batches = list(loader)
    assert [batch for batch, _ in batches] == [2, 1]
    found = [sample for _, unreadable in batches for sample in unreadable]
    assert [(sample.dataset, sample.item) for sample in of_all_processes(found + found)] == [
        ('one', 2),
        ('two', 0),
        ('two', 2),
    ]
    assert listing(found * 5).splitlines()[-1] == '  and 5 more'


def test_a_worker_passes_the_error_of_a_training_on():
    dataset = Pictures(3, [0, 1, 2], test_mode=False)
    with pytest.raises(NoUsableSampleError, match='pictures: 4 samples in a row cannot be used'):
        next(iter(DataLoader(dataset, num_workers=1)))
