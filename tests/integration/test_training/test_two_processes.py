"""Two processes with gloo against one that accumulates over the same samples."""

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_state

STEPS = 20
KEYS = ('loss', 'loss_lm', 'loss_noise', 'grad_norm', 'lr')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def one_process():
    """Curve and weights of one process with accumulation 2: each log line is one optimizer step."""
    return {}


def single_curve(cache, train, logged, work_dir):
    if not cache:
        status, output = train(
            work_dir,
            options=[
                'optim_wrapper.accumulative_counts=2',
                f'train_cfg.max_iters={2 * STEPS}',
                'default_hooks.logger.interval=2',
                'default_hooks.checkpoint.interval=100',
            ],
        )
        assert status == 0, output[-4000:]
        cache['curve'] = {iteration // 2: entry for iteration, entry in logged(work_dir).items()}
        cache['weights'] = load_state(work_dir / 'model.safetensors')['state_dict']
    return cache['curve'], cache['weights']


@pytest.mark.parametrize('zero', ['zero1', 'zero2', 'zero3', 'none'])
def test_two_processes_follow_the_curve_of_one(one_process, train, logged, tmp_path, zero):
    curve, weights = single_curve(one_process, train, logged, tmp_path / 'one')
    work_dir = tmp_path / zero
    options = [f'train_cfg.max_iters={STEPS}', 'default_hooks.checkpoint.interval=10']
    arguments = [] if zero == 'zero2' else ['--deepspeed', zero]
    status, output = train(work_dir, *arguments, processes=2, options=options)
    assert status == 0, output[-4000:]
    scalars = logged(work_dir)
    assert sorted(scalars) == sorted(curve) == list(range(1, STEPS + 1))
    for step in curve:
        for key in KEYS:
            assert scalars[step][key] == pytest.approx(curve[step][key], abs=1e-4), (step, key)
    state = load_state(work_dir / 'model.safetensors')['state_dict']
    assert state.keys() == weights.keys()
    for key in weights:
        torch.testing.assert_close(state[key], weights[key], atol=1e-5, rtol=0)
    last = load_state(work_dir / 'iter_20.pth')['state_dict']
    assert {key.split('.')[0] for key in set(last) - set(state)} == {'distill'}
    for key in state:
        torch.testing.assert_close(last[key], state[key], atol=0, rtol=0)

    if zero == 'none':
        return  # resuming plain checkpoints is tested with one process
    status, output = train(
        work_dir, '--resume', work_dir / 'iter_10.pth', *arguments, processes=2, options=options
    )
    assert status == 0, output[-4000:]
    assert 'resumed epoch: 0, iter: 10' in output
    again = logged(work_dir)
    for step in range(11, STEPS + 1):
        for key in KEYS:
            assert again[step][key] == pytest.approx(scalars[step][key], abs=1e-6), (step, key)


def test_last_window_may_be_short(train, logged, tmp_path):
    """7 micro-batches with accumulation 4: steps of 4 and of 3, with DeepSpeed as without."""
    options = ['optim_wrapper.accumulative_counts=4', 'train_cfg.max_iters=7']
    assert train(tmp_path / 'plain', options=options)[0] == 0
    status, output = train(tmp_path / 'zero', '--deepspeed', 'zero1', options=options)
    assert status == 0, output[-4000:]
    plain, zero = (
        load_state(tmp_path / name / 'model.safetensors')['state_dict']
        for name in ('plain', 'zero')
    )
    for key in plain:
        torch.testing.assert_close(zero[key], plain[key], atol=1e-6, rtol=0)
