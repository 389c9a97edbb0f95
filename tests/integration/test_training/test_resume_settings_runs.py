"""Resuming with other settings, without DeepSpeed and with each ZeRO stage."""

import json

import pytest

from tests.integration.test_training.resume_settings_run import STRATEGIES

pytestmark = pytest.mark.slow

EVERY = [str(strategy) for strategy in STRATEGIES]


@pytest.fixture
def runs(run_tool, warm_python, tmp_path_factory):
    """Results of resume_settings_run.py, which runs once."""
    folder = tmp_path_factory.getbasetemp() / 'resume_settings'
    if not (folder / 'results.json').exists():
        folder.mkdir(exist_ok=True)
        status, output = run_tool(
            warm_python, 'tests/integration/test_training/resume_settings_run.py', folder
        )
        assert status == 0, output[-4000:]
    return json.loads((folder / 'results.json').read_text())


@pytest.mark.parametrize('strategy', EVERY)
def test_same_settings_are_exact_and_one_line(runs, strategy):
    saved, same = runs['saved'][strategy], runs['same'][strategy]
    for key in ('loss', 'grad_norm', 'lr'):
        assert same[key] == saved[key][2:] and len(same[key]) == 2
    assert same['log'].startswith('as in ') and 'what happens' not in same['log']


@pytest.mark.parametrize('strategy', EVERY)
def test_settings_of_the_config_count(runs, strategy):
    same, other, fresh = (runs[name][strategy] for name in ('same', 'other', 'fresh'))
    assert other['lr'] == fresh['lr'][2:] and len(other['lr']) == 4
    assert other['loss'][0] == same['loss'][0]  # the first step changes the loss after it
    assert abs(other['loss'][1] - same['loss'][1]) > 1e-2
    clip = 'deepspeed.gradient_clipping' if strategy != 'None' else 'optim_wrapper.clip_grad'
    for name in ('optim_wrapper.optimizer.lr', 'optimizer.weight_decay', 'max_iters', clip):
        assert name in other['log']


@pytest.mark.parametrize('strategy', EVERY[1:])
def test_all_strategies_apply_the_same(runs, strategy):
    """The norm that gradients are clipped at, too: ZeRO-1 and 2 would take the saved one."""
    assert runs['other'][strategy]['loss'] == pytest.approx(runs['other']['None']['loss'], abs=1e-4)


def test_another_strategy_is_refused(runs):
    for name, strategy, words in (
        ('from_plain', 'zero1', 'not a DeepSpeed checkpoint folder'),
        ('from_zero1', 'None', 'is a checkpoint of DeepSpeed; resume with the --deepspeed'),
    ):
        error = runs[name][strategy]['error']
        assert words in error and 'load_from=CHECKPOINT' in error


def test_stages_continue_each_other(runs):
    for name, strategy in (
        ('from_zero1', 'zero2'),
        ('from_zero2', 'zero1'),
        ('from_zero2', 'zero3'),
    ):
        found = runs[name][strategy]
        assert 'deepspeed.zero_optimization.stage' in found['log']
        assert found['loss'] == pytest.approx(runs['saved'][strategy]['loss'][2:], abs=1e-6)
