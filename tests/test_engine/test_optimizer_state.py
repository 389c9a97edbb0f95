"""What an optimizer remembers and is NaN or infinite: the step is refused, and that is reset."""

import pytest
import torch

from pixelsail_mm.engine.optim_wrappers import PixelOptimWrapper
from pixelsail_mm.engine.optimizer_state import bad_entries, reset_bad_entries, state_is_finite
from pixelsail_mm.engine.step_check import Outcome, all_finite
from tests.test_engine.test_bad_steps import build, same, weights  # noqa: F401


def test_step_is_refused_named_and_the_next_one_taken(build, tmp_path):  # noqa: F811
    runner = build((2, 0, 'state'))
    runner.train()
    assert not same(tmp_path, 2, 3) and same(tmp_path, 3, 4) and not same(tmp_path, 4, 5)
    assert all_finite(weights(tmp_path, 6).values())
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert (
        "iteration 4: optimizer step skipped, the optimizer's state is NaN or infinite (exp_avg of "
        'layer.weight (1 number)) and is set to zero there, as at the start; the weights are'
    ) in log
    assert 'skipped optimizer steps: 1' in log


def train_once(wrapper, layer, factor=1.0):
    output = layer(torch.ones(1, 2)).sum()
    output.register_hook(lambda gradient: gradient * factor)
    wrapper.update_params(output)
    return wrapper.outcome


@pytest.fixture(params=[False, True], ids=['plain', 'fused'])
def trained(request):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=request.param)
    wrapper = PixelOptimWrapper(optimizer=optimizer)
    assert train_once(wrapper, layer) is Outcome.TAKEN
    return layer, optimizer, wrapper


def test_finite_gradient_whose_square_overflows(trained):
    """Without clipping nothing is wrong with it, but the weight would never move again."""
    layer, optimizer, wrapper = trained
    assert train_once(wrapper, layer, 1e25) is Outcome.TAKEN
    assert not state_is_finite(optimizer) and all_finite(layer.parameters())
    before = layer.weight.detach().clone()
    assert train_once(wrapper, layer) is Outcome.SKIPPED and wrapper.bad_state
    assert torch.equal(layer.weight, before)
    assert bad_entries(layer, optimizer) == [
        'exp_avg_sq of weight (4 numbers)',
        'exp_avg_sq of bias (2 numbers)',
    ]
    reset_bad_entries(optimizer, replicated=True)
    assert bad_entries(layer, optimizer) == [] and state_is_finite(optimizer)
    assert train_once(wrapper, layer) is Outcome.TAKEN and not wrapper.bad_state
    moved = (layer.weight - before).abs()
    assert 0 < moved.max() < 3.2 * 0.1 + 0.01


def test_other_numbers_keep_what_is_remembered(trained):
    layer, optimizer, _ = trained
    state = optimizer.state[layer.weight]
    before = {key: value.clone() for key, value in state.items()}
    state['exp_avg'][0, 1] = float('-inf')
    reset_bad_entries(optimizer, replicated=True)
    for key in ('exp_avg', 'exp_avg_sq'):
        assert state[key][0, 1] == 0
        state[key][0, 1] = before[key][0, 1]
        assert torch.equal(state[key], before[key])
    assert state['step'] == before['step']


def test_large_numbers_are_finite_though_their_sum_is_not(trained):
    layer, optimizer, _ = trained
    optimizer.state[layer.weight]['exp_avg_sq'].fill_(3e38)
    assert state_is_finite(optimizer)
    optimizer.state[layer.weight]['exp_avg_sq'][0, 0] = float('nan')
    assert not state_is_finite(optimizer)


def test_state_before_the_first_step():
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    assert state_is_finite(optimizer)
    reset_bad_entries(optimizer, replicated=True)
