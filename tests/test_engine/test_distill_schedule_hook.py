"""The weight of the distillation losses over a training."""

import logging
from types import SimpleNamespace

import pytest
from torch import nn

from pixelsail_mm.engine.hooks import DistillScheduleHook


class Loss(nn.Module):
    def __init__(self, loss_weight):
        super().__init__()
        self.loss_weight = loss_weight
        self.channel_weights = None

    def set_channel_weights(self, weights):
        self.channel_weights = weights


def weights_at(hook, runner, iteration):
    runner.iter = iteration
    hook.before_train_iter(runner, 0)
    return [loss.loss_weight for loss in runner.model.distill]


@pytest.fixture
def runner():
    model = nn.Module()
    model.distill = nn.ModuleList([Loss(4.0), Loss(0.5)])
    return SimpleNamespace(model=model, max_iters=100, iter=0)


def test_weights_fall_linearly_and_stay(runner):
    hook = DistillScheduleHook([dict(end=0.1, until=0.5)])
    hook.before_train(runner)
    assert weights_at(hook, runner, 0) == [4.0, 0.5]
    assert weights_at(hook, runner, 25) == pytest.approx([2.2, 0.275])
    assert weights_at(hook, runner, 50) == pytest.approx([0.4, 0.05])
    assert weights_at(hook, runner, 99) == pytest.approx([0.4, 0.05])


def test_resumed_run_has_the_weights_of_its_iteration(runner):
    hook = DistillScheduleHook([dict(end=0.0, until=1.0)])
    runner.iter = 60
    hook.before_train(runner)
    assert weights_at(hook, runner, 60) == pytest.approx([1.6, 0.2])


def test_losses_without_channel_weights_are_named_and_left_alone(runner, caplog):
    plain = nn.Module()
    plain.loss_weight, plain.name = 1.0, 'mine'
    runner.model.distill.append(plain)
    runner.logger = logging.getLogger('distill')
    hook = DistillScheduleHook([dict(until=0.5, channel_weights=[3.0])])
    with caplog.at_level('INFO'):
        hook.before_train(runner)
    assert 'mine (Module) has no channel weights' in caplog.text
    assert weights_at(hook, runner, 0) == [4.0, 0.5, 1.0]
    assert [loss.channel_weights for loss in runner.model.distill[:2]] == [[3.0], [3.0]]


def test_model_without_distillation_is_left_alone():
    runner = SimpleNamespace(model=nn.Linear(1, 1), max_iters=10, iter=3)
    hook = DistillScheduleHook([dict(until=0.5)])
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)


TWO = [
    dict(until=0.2, end=0.5),
    dict(begin=0.6, until=0.8, start=0.4, end=0.0, channel_weights=[2.0]),
]


def test_second_phase_begins_anew_and_stresses_other_channels(runner):
    hook = DistillScheduleHook(TWO)
    hook.before_train(runner)
    first = runner.model.distill[0]
    assert weights_at(hook, runner, 59)[0] == pytest.approx(2.0)
    assert first.channel_weights is None
    assert weights_at(hook, runner, 60)[0] == pytest.approx(1.6)
    assert first.channel_weights == [2.0]
    assert weights_at(hook, runner, 70)[0] == pytest.approx(0.8)
    assert weights_at(hook, runner, 90)[0] == pytest.approx(0.0)


def test_run_resumed_in_a_later_phase_has_its_channels(runner):
    hook = DistillScheduleHook(TWO)
    hook.before_train(runner)
    weights_at(hook, runner, 75)
    assert [loss.channel_weights for loss in runner.model.distill] == [[2.0], [2.0]]


def test_run_resumed_in_a_phase_without_channels_has_those_of_the_phase_before(runner):
    hook = DistillScheduleHook([*TWO, dict(begin=0.95, until=1.0)])
    hook.before_train(runner)
    weights_at(hook, runner, 97)
    assert [loss.channel_weights for loss in runner.model.distill] == [[2.0], [2.0]]


@pytest.mark.parametrize(
    'phases, message',
    [
        ([dict(until=0.5, end=-1)], 'factors that are not negative'),
        ([dict(until=0)], 'begin < until'),
        ([dict(until=1.1)], 'until <= 1'),
        ([dict(end=0.1)], 'needs `until`'),
        ([dict(until=0.5, weight=1)], 'weight'),
        ([], 'phases begin at 0'),
        ([dict(begin=0.1, until=0.5)], 'phases begin at 0'),
        ([dict(until=0.5), dict(until=0.9)], 'follow each other'),
    ],
)
def test_wrong_phases_are_named(phases, message):
    with pytest.raises(ValueError, match=message):
        DistillScheduleHook(phases)
