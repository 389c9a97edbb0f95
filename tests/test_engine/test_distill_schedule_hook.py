"""The weight of the distillation losses over a training."""

from types import SimpleNamespace

import pytest
from torch import nn

from pixelsail_mm.engine.hooks import DistillScheduleHook


class Loss(nn.Module):

    def __init__(self, loss_weight):
        super().__init__()
        self.loss_weight = loss_weight


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
    hook = DistillScheduleHook(end=0.1, until=0.5)
    hook.before_train(runner)
    assert weights_at(hook, runner, 0) == [4.0, 0.5]
    assert weights_at(hook, runner, 25) == pytest.approx([2.2, 0.275])
    assert weights_at(hook, runner, 50) == pytest.approx([0.4, 0.05])
    assert weights_at(hook, runner, 99) == pytest.approx([0.4, 0.05])


def test_resumed_run_has_the_weights_of_its_iteration(runner):
    hook = DistillScheduleHook(end=0.0, until=1.0)
    runner.iter = 60
    hook.before_train(runner)
    assert weights_at(hook, runner, 60) == pytest.approx([1.6, 0.2])


def test_model_without_distillation_is_left_alone():
    runner = SimpleNamespace(model=nn.Linear(1, 1), max_iters=10, iter=3)
    hook = DistillScheduleHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)


@pytest.mark.parametrize('arguments', [dict(end=-1), dict(until=0), dict(until=1.1)])
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f'{next(iter(arguments))}='):
        DistillScheduleHook(**arguments)
