"""Kill -9 and resume, in real processes."""

import signal

import pytest

from tests.helpers.resumable import find_resumable

LOSSES = ('loss', 'loss_lm', 'loss_noise', 'grad_norm', 'lr')
KILLED = -signal.SIGKILL

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Folder that the tests of this module share."""
    return tmp_path_factory.mktemp('runs')


@pytest.fixture
def uninterrupted(train, logged, runs):
    if not (runs / 'whole').exists():
        status, output = train(runs / 'whole')
        assert status == 0, output[-4000:]
    scalars = logged(runs / 'whole')
    assert sorted(scalars) == list(range(1, 7))
    return scalars


def assert_same(scalars, expected):
    assert sorted(scalars) == sorted(expected)
    for iteration, entry in expected.items():
        for key in LOSSES:
            assert scalars[iteration][key] == pytest.approx(entry[key], abs=1e-6)


def test_killed_run_continues_to_the_same_losses(train, logged, tmp_path, uninterrupted):
    # Workers prefetch beyond the kill: what they loaded must not count as consumed.
    options = ['train_dataloader.num_workers=2']
    # Written in the background, the checkpoint may not be complete so soon.
    at_once = ['custom_hooks.0.before=3', 'default_hooks.checkpoint.async_save=False']
    status, _ = train(tmp_path, options=[*options, *at_once])
    assert status == KILLED
    assert find_resumable(tmp_path).endswith('iter_2.pth')
    status, output = train(tmp_path, '--resume', options=options)
    assert status == 0, output[-4000:]
    assert 'resumed epoch: 0, iter: 2' in output
    assert 'Advance dataloader' not in output
    assert_same(logged(tmp_path), uninterrupted)


def test_kill_while_writing_keeps_the_checkpoint_before(train, logged, tmp_path, uninterrupted):
    options = ['default_hooks.checkpoint.max_keep_ckpts=1']
    status, _ = train(tmp_path, options=[*options, 'custom_hooks.0.writing=2'])
    assert status == KILLED
    assert (tmp_path / 'iter_4.pth.unfinished').exists()
    assert not (tmp_path / 'iter_4.pth').exists()
    assert find_resumable(tmp_path).endswith('iter_2.pth')
    status, output = train(tmp_path, '--resume', options=options)
    assert status == 0, output[-4000:]
    assert_same(logged(tmp_path), uninterrupted)
    assert sorted(path.name for path in tmp_path.glob('iter_*')) == ['iter_6.pth']
