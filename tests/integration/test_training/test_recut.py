"""ZeRO checkpoints go on with another stage or number of processes."""

import pytest
import torch

from pixelsail_mm.checkpoints.formats.zero_checkpoint import read_zero_folder
from pixelsail_mm.checkpoints.formats.zero_optimizer import read_layout, read_zero_optimizer

pytestmark = pytest.mark.slow
SCRIPT = 'tests/integration/test_training/recut_run.py'


def contents(folder):
    """All values of a checkpoint, whatever way it is cut."""
    found = {f'weight {name}': value for name, value in read_zero_folder(folder).items()}
    optimizer = read_zero_optimizer(folder)
    for key, values in optimizer.moments.items():
        found.update({f'{key} {name}': value for name, value in values.items()})
    return optimizer.steps, {name: value.read() for name, value in found.items()}


def test_any_stage_and_number_of_processes(run_tool, warm_python, environment, tmp_path):
    two = ['zero2:2', 'zero3:3', 'zero3_of_zero2:3:zero2', 'zero1_of_zero3:1:zero3']
    launch = [warm_python, '-m', 'pixelsail_mm.engine.processes', '--nproc-per-node', 2]
    status, output = run_tool(*launch, SCRIPT, tmp_path, 'pytorch', *two)
    assert status == 0, output[-4000:]
    assert 'was written by 2 processes with ZeRO stage 2: cutting it anew for 2' in output
    one = ['one_of_zero2:2:zero2', 'one_of_zero3:3:zero2', 'one_of_zero3_too:2:zero3']
    status, output = run_tool(warm_python, SCRIPT, tmp_path, 'none', *one)
    assert status == 0, output[-4000:]
    for case in two[2:] + one:
        name, stage, saved = case.split(':')
        assert read_layout(tmp_path / name / 'iter_3.pth') == (int(stage), 2 - (case in one))
        for iteration, tolerance in ((3, 0), (5, 1e-6)):
            file = f'iter_{iteration}.pth'
            steps, now = contents(tmp_path / name / file)
            before, then = contents(tmp_path / saved / file)
            assert steps == before == iteration
            assert now.keys() == then.keys() and len(now) > 20
            for key, value in then.items():
                torch.testing.assert_close(now[key], value, atol=tolerance, rtol=0, msg=key)
