"""ZeRO-3 without CUDA streams: no weight is used before all of it has arrived."""

import pytest

pytestmark = pytest.mark.slow


def test_weights_are_complete_after_a_step(run_tool, warm_python):
    """DeepSpeed waits for the last of several gathers only, as if they ended in order."""
    status, output = run_tool(
        warm_python,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        'tests/integration/test_training/gathered_weights_run.py',
    )
    assert status == 0, output[-4000:]
    assert 'wrong: 0\n' in output
