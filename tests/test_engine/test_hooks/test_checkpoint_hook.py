"""Checkpoints of a training, in this process."""

import json
import resource
import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.config import read_config
from pixelsail_mm.engine import checkpoint_writer
from pixelsail_mm.engine.runner_factory import build_runner
from pixelsail_mm.errors import ConfigError, NotSavedError
from tests.helpers.resumable import find_resumable

CONFIG = Path(__file__).parents[1] / 'toy_config.py'
numbers = count()


@pytest.fixture
def build(tmp_path):
    """Build a runner of the toy config with options of its checkpoint hook."""

    def make(resume=False, steps=6, accumulation=1, **hook):
        options = [f'train_cfg.max_iters={steps}']
        options += [f'optim_wrapper.accumulative_counts={accumulation}']
        options += [f'default_hooks.checkpoint.{key}={value}' for key, value in hook.items()]
        cfg = read_config(str(CONFIG), options)
        cfg.work_dir, cfg.experiment_name = str(tmp_path / 'work'), f'ckpt{next(numbers)}'
        cfg.launcher, cfg.resume = 'none', resume
        if 'save_best' in hook:
            cfg.train_cfg.val_interval = 1
        else:
            cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
        return build_runner(cfg)

    return make


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / 'work').glob('*.pth*'))


def log_of(runner):
    [file] = Path(runner.log_dir).glob('*.log')
    return file.read_text()


def faults_of(runner):
    return [line for line in log_of(runner).splitlines() if 'checkpoint not saved' in line]


def at(runner, iteration, action, place='after_train_iter'):
    """Do something in a hook of an iteration (from 0)."""

    class Act(Hook):
        priority = 'NORMAL' if place == 'before_train_iter' else 'LOWEST'

    def act(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == iteration:
            action(runner)

    setattr(Act, place, act)
    runner.register_hook(Act())


def hook_of(runner):
    [hook] = [hook for hook in runner.hooks if type(hook).__name__ == 'PixelCheckpointHook']
    return hook


@pytest.mark.parametrize('in_thread', [True, False])
def test_a_checkpoint_is_the_state_at_its_iteration(build, tmp_path, in_thread, monkeypatch):
    """However long it takes to write, and whatever the training does meanwhile."""
    states = {}
    write = checkpoint_writer.write_state

    def slow_write(state, path):  # a slow disk cannot be had
        for _ in range(50):
            if len(states) == 6:
                break
            checkpoint_writer.time.sleep(0.01)
        write(state, path)

    monkeypatch.setattr(checkpoint_writer, 'write_state', slow_write)
    runner = build(async_save=in_thread)

    class Note(Hook):
        priority = 'HIGHEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            states[batch_idx + 1] = {
                key: value.clone() for key, value in runner.model.state_dict().items()
            }

    runner.register_hook(Note())
    runner.train()
    assert names(tmp_path) == ['iter_4.pth', 'iter_6.pth']
    for step in (4, 6):
        content = torch.load(tmp_path / f'work/iter_{step}.pth', weights_only=False)
        assert content['meta']['iter'] == step
        for key, value in states[step].items():
            assert torch.equal(content['state_dict'][key], value)
        tied = content['state_dict']['embed.weight'], content['state_dict']['head.weight']
        assert tied[0].data_ptr() == tied[1].data_ptr()
        assert content['optimizer']['state'][0]['step'] == step
    assert (tmp_path / 'work/last_checkpoint').read_text().endswith('iter_6.pth')
    assert log_of(runner).count('is complete: ') == 3


def test_last_n_and_best_work_together_and_survive_a_resume(build, tmp_path):
    best = dict(save_best='a/mean', rule='greater', max_keep_ckpts=2, interval=1)
    runner = build(steps=4, **best)
    runner.train()
    scores = _values(runner, 'a/mean')
    assert len(scores) == 4
    step = 1 + scores.index(max(scores))
    assert names(tmp_path) == [f'best_a_mean_iter_{step}.pth', 'iter_3.pth', 'iter_4.pth']
    listed = json.loads((tmp_path / 'work/best_checkpoints.json').read_text())
    assert listed['best_score'] == pytest.approx(max(scores))
    content = torch.load(tmp_path / f'work/best_a_mean_iter_{step}.pth', weights_only=False)
    assert content['meta']['iter'] == step and 'optimizer' not in content

    # iter_4 was saved before its validation; a better score of the list still counts.
    listed['best_score'] = 1e9
    (tmp_path / 'work/best_checkpoints.json').write_text(json.dumps(listed))
    resumed = build(resume=True, steps=6, **best)
    resumed.train()
    assert names(tmp_path) == [f'best_a_mean_iter_{step}.pth', 'iter_5.pth', 'iter_6.pth']
    listed['best_score'] = -1e9
    (tmp_path / 'work/best_checkpoints.json').write_text(json.dumps(listed))
    build(resume=True, steps=7, **best).train()
    assert names(tmp_path) == ['best_a_mean_iter_7.pth', 'iter_6.pth', 'iter_7.pth']
    assert find_resumable(tmp_path / 'work').endswith('iter_7.pth')


def _values(runner, name):
    file = next(Path(runner.log_dir).glob('vis_data/scalars.json'))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_saves_by_time_are_replaced_by_the_next_one(build, tmp_path):
    seen = []
    runner = build(interval_minutes=1e-9, interval=4, steps=8, accumulation=2, max_keep_ckpts=-1)
    for iteration in range(8):
        at(runner, iteration, lambda runner: (hook_of(runner)._settle(runner), seen.append(None)))
        at(runner, iteration, lambda runner: seen.append(names(tmp_path)))
    runner.train()
    assert [found for found in seen if found is not None] == [
        [],
        ['iter_2.pth'],
        ['iter_2.pth'],
        ['iter_4.pth'],
        ['iter_4.pth'],
        ['iter_4.pth', 'iter_6.pth'],
        ['iter_4.pth', 'iter_6.pth'],
        ['iter_4.pth', 'iter_8.pth'],
    ]


def test_a_resumed_copy_leaves_the_original_alone(build, tmp_path):
    options = dict(interval_minutes=1e-9, interval=100, save_last=False)
    runner = build(steps=3, **options)
    runner.train()
    assert names(tmp_path) == ['iter_3.pth']
    shutil.copytree(tmp_path / 'work', tmp_path / 'original')
    content = torch.load(tmp_path / 'work/iter_3.pth', weights_only=False)
    for key, value in content['message_hub']['runtime_info'].items():
        if isinstance(value, str) and value.endswith('.pth'):
            moved = value.replace(str(tmp_path / 'work'), str(tmp_path / 'original'))
            content['message_hub']['runtime_info'][key] = moved
    torch.save(content, tmp_path / 'work/iter_3.pth')
    build(resume=True, steps=5, **options).train()
    assert names(tmp_path) == ['iter_5.pth']
    assert (tmp_path / 'original/iter_3.pth').exists()


@pytest.mark.parametrize('minutes', [0, -1])
def test_no_time_is_refused(build, minutes):
    with pytest.raises(ConfigError, match='interval_minutes'):
        build(interval_minutes=minutes)


@pytest.mark.parametrize('place', ['before_train_iter', 'after_train_iter'])
def test_save_now(build, tmp_path, place):
    done = 5 if place == 'after_train_iter' else 4
    paths = []

    class Stop(Exception):
        pass

    def save(runner):
        paths.extend(hook_of(runner).save_now(runner) for _ in range(2))
        raise Stop

    runner = build(interval=2)
    at(runner, 4, save, place)
    with pytest.raises(Stop):
        runner.train()
    assert paths == [str(tmp_path / f'work/iter_{done}.pth')] * 2
    assert load_state(paths[0])['meta']['iter'] == done
    # Iteration 4 is a regular one and stays; 5 is removed when the next one is complete.
    assert log_of(runner).count(f'iter_{done}.pth is complete') == 1
    build(resume=True, interval=2).train()
    assert names(tmp_path) == ['iter_4.pth', 'iter_6.pth']


def test_save_now_wants_whole_optimizer_steps(build):
    runner = build(accumulation=2)
    at(runner, 2, lambda runner: hook_of(runner).save_now(runner))
    with pytest.raises(ValueError, match='iteration 3 is not at the end'):
        runner.train()


@pytest.fixture
def largest_file():
    """Let the system refuse files above a size, as an exhausted quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('in_thread', [True, False])
def test_training_goes_on_without_a_checkpoint(build, tmp_path, largest_file, in_thread):
    runner = build(async_save=in_thread, interval=1, steps=5, max_keep_ckpts=2)
    at(runner, 1, lambda runner: (hook_of(runner)._settle(runner), largest_file(9000)))
    at(runner, 3, lambda runner: (hook_of(runner)._settle(runner), largest_file(-1)))
    runner.train()
    assert names(tmp_path) == ['iter_2.pth', 'iter_5.pth']
    faults = faults_of(runner)
    assert len(faults) == 2
    path = tmp_path / 'work/iter_3.pth'
    assert f'not saved: {path} does not fit on the disk: it needs about ' in faults[0]
    assert 'are free in' in faults[0] and '(File too large)' in faults[0]
    assert 'max_keep_ckpts' in faults[0] and 'the training goes on' in faults[0]


def test_without_the_last_checkpoint_the_training_ends_with_an_error(build, tmp_path, largest_file):
    runner = build(steps=3, interval=2)
    at(runner, 1, lambda runner: (hook_of(runner)._settle(runner), largest_file(9000)))
    with pytest.raises(NotSavedError, match=r'iter_3\.pth does not fit on the disk'):
        runner.train()
    assert names(tmp_path) == ['iter_2.pth']
    assert (tmp_path / 'work/model.safetensors').exists()
    assert find_resumable(tmp_path / 'work').endswith('iter_2.pth')


def test_save_now_says_that_it_failed(build, tmp_path, largest_file):
    def save(runner):
        hook_of(runner)._settle(runner)
        largest_file(9000)
        with pytest.raises(NotSavedError, match=r'iter_3\.pth does not fit'):
            hook_of(runner).save_now(runner)
        largest_file(-1)
        assert hook_of(runner).save_now(runner).endswith('iter_3.pth')

    runner = build(interval=2)
    at(runner, 2, save)
    runner.train()
    assert names(tmp_path) == ['iter_4.pth', 'iter_6.pth']


def test_too_little_space_is_known_before_a_save(build, tmp_path):
    """With a checkpoint before it that is larger than what is free."""
    runner = build(interval=2, steps=4)

    def enlarge(runner):
        hook_of(runner)._settle(runner)
        with open(hook_of(runner).last_ckpt, 'ab') as file:
            file.truncate(1 << 42)  # takes no space; 4 TiB

    at(runner, 1, enlarge)
    with pytest.raises(NotSavedError):
        runner.train()
    assert names(tmp_path) == ['iter_2.pth']
    [fault] = faults_of(runner)
    assert 'it needs about 4398.05 GB' in fault


def test_an_error_waits_for_the_save_in_flight(build, tmp_path, monkeypatch):
    write = checkpoint_writer.write_state

    def slow_write(state, path):  # a slow disk cannot be had
        checkpoint_writer.time.sleep(0.5)
        write(state, path)

    monkeypatch.setattr(checkpoint_writer, 'write_state', slow_write)

    def fail(runner):
        raise KeyboardInterrupt

    runner = build()
    at(runner, 3, fail)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert names(tmp_path) == ['iter_2.pth', 'iter_4.pth']
    assert 'checkpoint in flight: complete' in log_of(runner)


def test_a_bug_while_writing_is_not_taken_for_a_full_disk(build, tmp_path):
    class Odd(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint['odd'] = lambda: None  # cannot be pickled

    runner = build()
    runner.register_hook(Odd())
    with pytest.raises(RuntimeError, match=r'iter_2\.pth is not written: .*pickle'):
        runner.train()
    assert names(tmp_path) == []
