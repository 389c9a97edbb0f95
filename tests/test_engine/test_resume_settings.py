"""Resuming with other settings: said, applied or refused; with the same ones: exact and quiet."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.resuming import read_saved
from pixelsail_mm.engine.runner_factory import build_runner
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from tests.test_engine.test_training_settings import GROUPS

CONFIG = Path(__file__).with_name('toy_config.py')
LR, MAX_ITERS = 'optim_wrapper.optimizer.lr', 'train_cfg.max_iters'
ACCUMULATION = 'optim_wrapper.accumulative_counts'
numbers = count()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Runs that the tests share."""
    return tmp_path_factory.mktemp('runs')


@pytest.fixture
def runner_of(folder):
    """Build a runner of the toy config with options; every run gets a name of its own."""

    def build(name, resume=False, schedule=None, **options):
        cfg = read_config(str(CONFIG), [f'{key}={value}' for key, value in options.items()])
        cfg.param_scheduler = cfg.param_scheduler if schedule is None else schedule
        cfg.work_dir, cfg.experiment_name = str(folder / name), f'resume{next(numbers)}'
        cfg.launcher, cfg.resume = 'none', resume
        return build_runner(cfg)

    return build


@pytest.fixture
def whole(runner_of, folder):
    """A run of 6 iterations with a checkpoint every 2."""
    if not (folder / 'whole').exists():
        runner_of('whole', **{'default_hooks.checkpoint.max_keep_ckpts': -1}).train()
    return folder / 'whole'


def history(runner, name='loss'):
    return list(runner.message_hub.get_scalar(f'train/{name}').data[0])


def log_of(runner):
    return (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()


def resumed(runner_of, checkpoint, **options):
    runner = runner_of(f'resumed{next(numbers)}', resume=str(checkpoint), **options)
    runner.train()
    return runner


def test_same_settings_are_one_line_and_exact(runner_of, whole):
    runner = resumed(runner_of, whole / 'iter_2.pth')
    finished = resumed(runner_of, whole / 'iter_6.pth')
    for name in ('loss', 'lr', 'grad_norm'):
        assert len(history(runner, name)) == 6
        assert history(runner, name) == history(finished, name)
    text = log_of(runner)
    assert text.count('training settings: as in') == 1
    assert 'what happens' not in text and 'applied' not in text


def test_another_learning_rate_is_applied_and_said(runner_of, whole):
    same = resumed(runner_of, whole / 'iter_2.pth')
    other = resumed(runner_of, whole / 'iter_2.pth', **{LR: 0.5})
    fresh = runner_of('fresh', **{LR: 0.5})
    fresh.train()
    assert history(other, 'lr')[:2] == history(same, 'lr')[:2]  # what was trained before
    assert history(other, 'lr')[2:] == history(fresh, 'lr')[2:]
    assert history(other)[2] == history(same)[2]  # the first step changes the loss after it
    assert abs(history(other)[-1] - history(same)[-1]) > 1e-3
    text = log_of(other)
    assert 'optim_wrapper.optimizer.lr' in text and 'applied' in text


@pytest.mark.parametrize(
    'options',
    [
        {MAX_ITERS: 12},
        {MAX_ITERS: 4},
        {'param_scheduler.1.end': 0.5},
        {'schedule': []},
        {'schedule': [dict(type='PolyLR', by_epoch=False, end=6)]},
        {ACCUMULATION: 2, MAX_ITERS: 8},
    ],
)
def test_rates_are_those_of_a_run_with_the_new_schedule(runner_of, whole, options):
    """Digit for digit, whatever of the schedule changed."""
    runner = resumed(runner_of, whole / 'iter_2.pth', **options)
    fresh = runner_of(f'fresh{next(numbers)}', **options)
    fresh.train()
    assert len(history(runner)) == len(history(fresh)) == options.get(MAX_ITERS, 6)
    assert history(runner, 'lr')[2:] == history(fresh, 'lr')[2:]


def test_a_schedule_where_there_was_none(runner_of):
    first = runner_of('constant', schedule=[])
    first.train()
    runner = resumed(runner_of, Path(first.work_dir) / 'iter_4.pth')
    fresh = runner_of('scheduled')
    fresh.train()
    assert history(runner, 'lr')[4:] == history(fresh, 'lr')[4:]


def test_settings_of_the_optimizer_reach_it(runner_of, whole):
    runner = resumed(
        runner_of,
        whole / 'iter_2.pth',
        **{
            'optim_wrapper.optimizer.weight_decay': 0.2,
            'optim_wrapper.optimizer.betas': '(0.8,0.9)',
            'optim_wrapper.optimizer.fused': False,
        },
    )
    (group,) = runner.optim_wrapper.param_groups
    assert group['weight_decay'] == 0.2 and tuple(group['betas']) == (0.8, 0.9)
    assert group['fused'] is False
    assert {int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()} == {6}


def test_rates_of_groups_are_applied(runner_of):
    """paramwise_cfg: one group for each weight, and MMEngine's group of the base rate."""
    mild = {
        'optim_wrapper.paramwise_cfg.bypass_duplicate': True,
        'optim_wrapper.paramwise_cfg.custom_keys.layer.lr_mult': 0.5,
    }
    strong = {**mild, 'optim_wrapper.paramwise_cfg.custom_keys.layer.lr_mult': 0.1}
    first = runner_of('groups', **mild)
    first.train()
    runner = resumed(runner_of, Path(first.work_dir) / 'iter_4.pth', **strong)
    fresh = runner_of('fresh_groups', **strong)
    fresh.train()
    rates = [[group['lr'] for group in one.optim_wrapper.param_groups] for one in (runner, fresh)]
    assert rates[0] == rates[1] and len(set(rates[0])) == 2
    assert history(runner, 'base_lr')[4:] == history(fresh, 'base_lr')[4:]


@pytest.mark.parametrize(
    'options, words',
    [
        ({'train_dataloader.batch_size': 2}, 'samples_per_iter +1 +2 +refused'),
        ({'randomness.seed': 3}, 'seed +0 +3 +refused'),
        ({'train_dataloader.dataset.length': 13}, 'dataset_length +12 +13 +refused'),
        ({'train_dataloader.sampler.shuffle': False}, 'shuffle +True +False +refused'),
        ({'optim_wrapper.optimizer.type': 'Adam'}, 'optimizer.type +AdamW +Adam +refused'),
        ({'optim_wrapper.optimizer.amsgrad': True}, 'amsgrad +- +True +refused'),
        (
            {'optim_wrapper.paramwise_cfg.bypass_duplicate': True},
            'trained weights.*refused: grouped',
        ),
        ({MAX_ITERS: 1}, 'max_iters +6 +1 +refused.*iteration 2'),
        ({ACCUMULATION: 4}, 'accumulative_counts +1 +4 +refused.*2 is not a multiple of 4'),
    ],
)
def test_what_cannot_be_applied_exactly_is_refused(runner_of, whole, options, words):
    with pytest.raises(ConfigError, match=f'(?s){words}.*load_from=') as error:
        resumed(runner_of, whole / 'iter_2.pth', **options)
    assert 'iter_2.pth' in str(error.value)


def test_other_settings_are_listed(runner_of, whole):
    runner = resumed(
        runner_of,
        whole / 'iter_4.pth',
        **{
            'model.dropout': 0.3,
            'train_dataloader.dataset.seed': 5,
            'optim_wrapper.clip_grad.max_norm': 2.0,
        },
    )
    text = log_of(runner)
    for words in (
        'model.dropout',
        'train_dataloader.dataset.seed',
        'optim_wrapper.clip_grad.max_norm',
    ):
        assert words in text


def test_settings_that_only_say_how_to_run_do_not_count(runner_of, whole):
    runner = resumed(
        runner_of,
        whole / 'iter_4.pth',
        **{
            'train_dataloader.pin_memory': True,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 2,
            'train_cfg.val_interval': 7,
        },
    )
    assert 'training settings: as in' in log_of(runner)


def without_record(source, target, **meta):
    content = torch.load(source, weights_only=False)
    del content['meta']['training_settings']
    content['meta'].update(meta)
    torch.save(content, target)
    return target


def test_older_checkpoints_follow_the_config_and_say_so(runner_of, whole, tmp_path):
    old = without_record(whole / 'iter_2.pth', tmp_path / 'iter_2.pth')
    runner = resumed(runner_of, old)
    reference = resumed(runner_of, whole / 'iter_2.pth')
    assert history(runner) == history(reference)
    assert history(runner, 'lr') == history(reference, 'lr')
    assert 'cannot be compared' in log_of(runner)
    faster = resumed(runner_of, old, **{LR: 0.5})
    assert history(faster, 'lr')[2] == pytest.approx(500 * history(reference, 'lr')[2])


def test_older_checkpoint_inside_a_window_is_refused(runner_of, whole, tmp_path):
    old = without_record(whole / 'iter_2.pth', tmp_path / 'iter_2.pth')
    with pytest.raises(ConfigError, match='iter_2.pth: its iteration 2 is not a multiple of 4'):
        resumed(runner_of, old, **{ACCUMULATION: 4})


def test_weights_alone_are_not_resumed(runner_of, whole, tmp_path):
    content = torch.load(whole / 'iter_2.pth', weights_only=False)
    del content['optimizer']
    torch.save(content, tmp_path / 'iter_2.pth')
    with pytest.raises(CheckpointError, match='no optimizer state.*load_from='):
        resumed(runner_of, tmp_path / 'iter_2.pth')


def test_weights_without_a_place_are_refused(runner_of, whole, tmp_path):
    """Frozen layers that are left out change no trained weight."""
    content = torch.load(whole / 'iter_2.pth', weights_only=False)
    content['state_dict']['frozen.layers.7.weight'] = torch.zeros(2)
    torch.save(content, tmp_path / 'iter_2.pth')
    with pytest.raises(CheckpointError, match=r'1 of its .*frozen\.layers\.7.*load_from='):
        resumed(runner_of, tmp_path / 'iter_2.pth')


def test_code_in_a_checkpoint_does_not_run(runner_of, whole, tmp_path):
    """MMEngine would run `meta['config']` as a Python file."""
    planted = tmp_path / 'planted'
    old = without_record(
        whole / 'iter_2.pth',
        tmp_path / 'iter_2.pth',
        config=f'open({str(planted)!r}, "w").close()\n',
    )
    with pytest.raises(CheckpointError, match='config.*run'):
        resumed(runner_of, old)
    assert not planted.exists()


def test_record_is_readable_text(whole):
    saved = read_saved(whole / 'iter_2.pth')
    text = torch.load(whole / 'iter_2.pth', weights_only=False)['meta']['training_settings']
    assert isinstance(text, str) and json.loads(text) == saved.settings
    assert saved.settings['optim_wrapper']['optimizer']['lr'] == 1e-3
    assert saved.settings['max_iters'] == 6 and saved.iteration == 2


def test_no_group_is_forgotten(whole):
    assert {part for part, *_ in GROUPS} == set(read_saved(whole / 'iter_2.pth').settings)


def test_automatic_rates_are_applied(runner_of, whole):
    """MMEngine scales the rate of the config by the batch size."""
    cfg = {'auto_scale_lr.enable': True, 'auto_scale_lr.base_batch_size': 4}
    runner = resumed(runner_of, whole / 'iter_2.pth', **cfg)
    fresh = runner_of(f'fresh{next(numbers)}', **cfg)
    fresh.train()
    assert history(runner, 'lr')[2:] == history(fresh, 'lr')[2:]
    assert history(runner, 'lr')[2] == pytest.approx(history(runner, 'lr')[1] / 4, rel=0.3)
    assert 'auto_scale_lr' in log_of(runner)


def test_averaged_weights_do_not_pass_for_the_trained(runner_of):
    first = runner_of('averaged', custom_hooks='[dict(type="EMAHook")]')
    first.train()
    with pytest.raises(ConfigError, match='custom_hooks.*refused: with EMAHook'):
        resumed(runner_of, Path(first.work_dir) / 'iter_4.pth')


def test_a_tokenizer_of_other_tokens_is_refused(repo_root, tmp_path):
    """Of the same size, so that no shape tells; the same tokens in another folder are fine."""
    folders = [tmp_path / name for name in ('one', 'moved', 'other')]
    for folder in folders:
        byte_tokenizer().save_pretrained(folder)
    file = folders[2] / 'tokenizer.json'
    content = json.loads(file.read_text())
    tokens = content['model']['vocab']
    tokens['a'], tokens['b'] = tokens['b'], tokens['a']
    file.write_text(json.dumps(content))

    def run(folder, resume):
        config = repo_root / 'tests/integration/test_training/unequal_config.py'
        hook = 'dict(type="PixelCheckpointHook", by_epoch=False, interval=1, _delete_=True)'
        options = ['train_cfg.max_iters=2', f'default_hooks.checkpoint={hook}']
        # Without the box head, which another test may have registered under another module name.
        parts = ['mixed_components', 'unequal_components']
        imports = ','.join(f'tests.test_engine.{part}' for part in parts)
        options += [f'custom_imports.imports=[{imports}]']
        options += [f'{part}.tokenizer={folder}' for part in ('model', 'train_dataloader.dataset')]
        cfg = read_config(config, options)
        cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), f'tokens{next(numbers)}'
        cfg.launcher, cfg.resume = 'none', resume
        build_runner(cfg).train()

    run(folders[0], False)
    first = str(tmp_path / 'run/iter_1.pth')
    run(folders[1], first)
    with pytest.raises(ConfigError, match='vocabulary.*refused: the rows of the embeddings'):
        run(folders[2], first)
