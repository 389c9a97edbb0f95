"""The runner and its loops and hooks, in this process."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import build_runner, build_test_runner
from pixelsail_mm.errors import CheckpointError, ConfigError

CONFIG = Path(__file__).with_name('toy_config.py')
numbers = count()


@pytest.fixture
def config(tmp_path):
    """Read the toy config with options; every run gets a name of its own."""

    def read(work_dir=tmp_path, **options):
        cfg = read_config(str(CONFIG), [f'{key}={value}' for key, value in options.items()])
        cfg.work_dir, cfg.experiment_name = str(work_dir), f'toy{next(numbers)}'
        cfg.launcher = 'none'
        return cfg

    return read


class Stop(Exception):
    """Raised by the hook below."""


def stop_at(runner, iteration):
    from mmengine.hooks import Hook

    class StopHook(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if batch_idx == iteration:
                raise Stop

    runner.register_hook(StopHook())


def history(runner, name='loss'):
    return list(runner.message_hub.get_scalar(f'train/{name}').data[0])


def test_resume_with_accumulation_is_exact(config, tmp_path):
    options = {
        'optim_wrapper.accumulative_counts': 2,
        'train_cfg.max_iters': 7,
        'default_hooks.checkpoint.interval': 3,
    }
    whole = build_runner(config(tmp_path / 'whole', **options))
    whole.train()
    killed = build_runner(config(tmp_path / 'killed', **options))
    stop_at(killed, 5)
    with pytest.raises(Stop):
        killed.train()
    names = sorted(path.name for path in (tmp_path / 'killed').glob('iter_*'))
    assert names == ['iter_4.pth']  # 3 rounded up: iteration 3 ends in the middle of a window
    cfg = config(tmp_path / 'killed', **options)
    cfg.resume = True
    resumed = build_runner(cfg)
    resumed.train()
    assert len(history(whole)) == 7
    assert history(resumed) == history(whole)
    assert history(resumed, 'lr') == history(whole, 'lr')
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)


def test_small_steps_of_half_precision_weights_are_not_lost(config, tmp_path):
    """With the learning rate of the paper half of bfloat16 weights would never move."""
    options = {
        'optim_wrapper.optimizer.lr': 4e-5,
        'optim_wrapper.optimizer.weight_decay': 0.0,
        'model.dtype': 'bfloat16',
        'param_scheduler': '[]',
        'train_cfg.max_iters': 2,
        'default_hooks.checkpoint.interval': 1,
    }
    runner = build_runner(config(**options))
    runner.train()
    first, second = (load_state(tmp_path / f'iter_{step}.pth')['state_dict'] for step in (1, 2))
    moved = (first['layer.weight'] - second['layer.weight']).abs()
    assert (moved > 0).float().mean() > 0.99 and moved.max() < 1e-4


def test_resumed_run_with_another_order_is_refused(config):
    build_runner(config(**{'train_cfg.max_iters': 2})).train()
    cfg = config(**{'train_dataloader.batch_size': 2})
    cfg.resume = True
    with pytest.raises(ConfigError, match='samples_per_iter +1 +2 +refused'):
        build_runner(cfg).train()


def test_resume_without_checkpoint_starts_at_zero(config):
    cfg = config(**{'train_cfg.max_iters': 2})
    cfg.resume = True
    runner = build_runner(cfg)
    runner.train()
    assert len(history(runner)) == 2


def test_resume_from_a_broken_path_is_an_error(config, tmp_path):
    cfg = config()
    cfg.resume = str(tmp_path / 'iter_9.pth')
    with pytest.raises(CheckpointError, match='no such checkpoint'):
        build_runner(cfg)


def test_training_starts_from_weights_of_another_run(config, tmp_path):
    build_runner(config(tmp_path / 'first', **{'train_cfg.max_iters': 2})).train()
    first = load_state(tmp_path / 'first' / 'model.safetensors')['state_dict']
    runner = build_runner(
        config(
            tmp_path / 'second',
            **{
                'load_from': tmp_path / 'first' / 'model.safetensors',
                'train_cfg.max_iters': 1,
                'optim_wrapper.optimizer.lr': 0.0,
            },
        )
    )
    runner.train()
    second = runner.model.state_dict()
    assert {key.split('.')[0] for key in set(second) - set(first)} == {'distill'}
    for key in first:
        assert torch.equal(second[key], first[key])


def test_rates_count_optimizer_steps(config):
    """20 micro-batches in windows of 2 have the rates of 10 iterations without accumulation."""
    rates = []
    for accumulation in (1, 2):
        options = {
            'optim_wrapper.accumulative_counts': accumulation,
            'train_cfg.max_iters': 10 * accumulation,
            'param_scheduler.0.end': 0.3,
            'param_scheduler.1.begin': 0.3,
            'default_hooks.checkpoint.interval': 100,
        }
        runner = build_runner(config(**options))
        runner.train()
        rates.append(history(runner, 'lr')[accumulation - 1 :: accumulation])
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert rates[0][0] == pytest.approx(1e-8)
    assert rates[0][2] == rates[0][3] == pytest.approx(1e-3)
    assert rates[0][4:] == sorted(rates[0][4:], reverse=True)


def test_clipping_applies_to_the_accumulated_gradient(config):
    runner = build_runner(
        config(
            **{
                'optim_wrapper.accumulative_counts': 2,
                'train_cfg.max_iters': 2,
                'optim_wrapper.optimizer.type': 'SGD',
                'optim_wrapper.optimizer.lr': 1.0,
                'param_scheduler': [],
                'optim_wrapper.clip_grad.max_norm': 0.01,
            }
        )
    )
    # AdamW's own keys do not suit SGD.
    runner.optim_wrapper.optimizer.pop('betas')
    runner.optim_wrapper.optimizer.weight_decay = 0.0
    start = {}
    from mmengine.hooks import Hook

    class Remember(Hook):
        def before_train(self, runner):
            start.update({k: v.clone() for k, v in runner.model.state_dict().items()})

    runner.register_hook(Remember())
    runner.train()
    # Parameters, not the state dict: it names the tied weight twice.
    moved = sum(
        ((value.detach() - start[key]) ** 2).sum() for key, value in runner.model.named_parameters()
    )
    assert float(moved.sqrt()) == pytest.approx(0.01, rel=1e-4)
    assert len(history(runner, 'grad_norm')) == 1


def test_log_shows_speed_memory_and_skipped_samples(config, tmp_path):
    runner = build_runner(config())
    runner.train()
    line = json.loads(
        (Path(runner.log_dir) / 'vis_data' / f'{runner.timestamp}.json').read_text().splitlines()[0]
    )
    assert {'loss', 'loss_lm', 'loss_noise', 'grad_norm', 'lr', 'tokens_per_sec', 'time'} <= {*line}
    text = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    assert 'eta: ' in text and 'memory: ' in text
    assert 'skipped samples: ' in text and ' x toy reason' in text
    assert text.count('read otherwise than in the files: 2 (2 x toy rotation ignored)') == 1


def test_test_runs_every_dataset_and_prefixes_its_metrics(config, tmp_path):
    build_runner(config(**{'train_cfg.max_iters': 2})).train()
    runner = build_test_runner(config(), str(tmp_path / 'model.safetensors'))
    metrics = runner.test()
    assert {key: metrics[key] for key in ('a/count', 'b/count')} == {'a/count': 5, 'b/count': 3}
    assert {'a/mean', 'b/mean'} <= metrics.keys()


def test_testing_needs_no_experts(config, tmp_path):
    cfg = config()
    cfg.model.distill = [dict(type='ExpertDistillLoss', expert=dict(type='NotInstalledHere'))]
    runner = build_test_runner(cfg, str(tmp_path / 'model.safetensors'))
    assert runner.model['distill'] == []


def test_one_dataset_needs_no_list(config, tmp_path):
    build_runner(config(**{'train_cfg.max_iters': 2})).train()
    cfg = config()
    cfg.test_dataloader, cfg.test_evaluator = cfg.test_dataloader[0], [cfg.test_evaluator[0]]
    assert build_test_runner(cfg, str(tmp_path / 'iter_2.pth')).test()['a/count'] == 5


def test_lists_of_other_lengths_and_equal_prefixes_are_refused(config, tmp_path):
    build_runner(config(**{'train_cfg.max_iters': 2})).train()
    weights = str(tmp_path / 'model.safetensors')
    cfg = config()
    cfg.test_evaluator = cfg.test_evaluator[:1]
    with pytest.raises(ConfigError, match='2 data loaders, test_evaluator 1'):
        build_test_runner(cfg, weights).test()
    with pytest.raises(ConfigError, match='a/mean is reported twice|a/count is reported twice'):
        build_test_runner(config(**{'test_evaluator.1.prefix': 'a'}), weights).test()


def test_checkpoint_without_a_used_module_is_refused(config, tmp_path):
    from pixelsail_mm.checkpoints.checkpoint import save_weights

    build_runner(config(**{'train_cfg.max_iters': 2})).train()
    state = load_state(tmp_path / 'model.safetensors')['state_dict']
    save_weights(
        {key: value for key, value in state.items() if 'layer' not in key},
        tmp_path / 'partial.safetensors',
    )
    with pytest.raises(CheckpointError, match='layer.weight'):
        build_test_runner(config(), str(tmp_path / 'partial.safetensors')).test()


@pytest.mark.parametrize('key', ['train_dataloader', 'train_cfg', 'optim_wrapper', 'model'])
def test_missing_sections_are_named(config, key):
    cfg = config()
    cfg.pop(key)
    with pytest.raises(ConfigError, match=f'`{key}`'):
        build_runner(cfg)
