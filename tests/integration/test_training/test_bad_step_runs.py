"""NaN and infinity in real processes: all skip together, and nothing of it reaches a file."""

import json
from pathlib import Path

import pytest

from pixelsail_mm.errors import DIVERGED
from tests.test_engine.test_bad_steps import same

FAULTY = 'tests/test_engine/faulty_config.py'


@pytest.mark.slow
def test_resumed_after_a_skipped_step_all_steps_are_taken(run_tool, warm_python, tmp_path):
    """DeepSpeed's checkpoint says that the step was skipped; unchecked, nothing sets it back."""
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{Path(__file__).parents[2] / 'test_engine/faulty_config.py'}'\n"
        "custom_hooks = [dict(type='FaultHook', faults=[(2, 0, 'loss')])]\n"
    )
    tool = [
        warm_python,
        'tools/train.py',
        config,
        '--work-dir',
        tmp_path / 'run',
        '--deepspeed',
        'zero1',
    ]
    status, output = run_tool(*tool, '--cfg-options', 'train_cfg.max_iters=3')
    assert status == 0 and 'iteration 3: optimizer step skipped' in output, output[-4000:]
    status, output = run_tool(
        *tool, '--resume', '--cfg-options', 'train_cfg.max_iters=5', 'default_hooks.bad_steps=None'
    )
    assert status == 0, output[-4000:]
    assert same(tmp_path / 'run', 2, 3)
    assert not same(tmp_path / 'run', 3, 4) and not same(tmp_path / 'run', 4, 5)


@pytest.mark.slow
@pytest.mark.parametrize('zero', ['none', 'zero1', 'zero2', 'zero3'])
def test_all_processes_skip_and_stop_together(run_tool, warm_python, tmp_path, zero):
    status, output = run_tool(
        'bash',
        'tools/dist_train.sh',
        'tests/test_engine/faulty_config.py',
        2,
        '--work-dir',
        tmp_path,
        '--deepspeed',
        zero,
    )
    assert status == DIVERGED, output[-4000:]
    assert '3 optimizer steps in a row' in output and 'at iteration 12; 7 in this run' in output
    assert 'iteration 2: optimizer step skipped, its loss is NaN or infinite' in output
    assert 'iteration 4: optimizer step skipped, a gradient (all losses were finite)' in output
    [line] = [line for line in output.splitlines() if 'iteration 8: optimizer step skipped' in line]
    assert "the optimizer's state is NaN or infinite (exp_avg of layer.weight (1 number))" in line
    assert not (tmp_path / 'model.safetensors').exists()
    ranks = {2: '1', 4: '01', 6: '1', 8: '01', 10: '1', 11: '1', 12: '1'}
    written = {f'iter_{number}_rank_{rank}.json' for number in ranks for rank in ranks[number]}
    assert {path.name for path in (tmp_path / 'bad_steps').iterdir()} == written
    content = json.loads((tmp_path / 'bad_steps/iter_8_rank_1.json').read_text())
    assert content['optimizer_state'] == ['exp_avg of layer.weight (1 number)']
    for skipped in (2, 4, 6, 8, 10, 11):
        assert same(tmp_path, skipped - 1, skipped), skipped
    for taken in (3, 5, 7, 9):
        assert not same(tmp_path, taken - 1, taken), taken
