"""Too little memory in one of two processes: it reports, both end, with a status of its own."""

import pytest

from pixelsail_mm.errors import OUT_OF_MEMORY

CONFIG = """
_base_ = '{root}/tests/test_engine/toy_config.py'
custom_imports = dict(imports=['tests.test_engine.memory_components'])
model = dict(type='HungryModel', after=2, rank=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize('zero', ['none', 'zero3'])
def test_one_of_two_processes(run_tool, repo_root, tmp_path, zero):
    config, run = tmp_path / 'config.py', tmp_path / 'run'
    config.write_text(CONFIG.format(root=repo_root))
    status, output = run_tool(
        'bash', 'tools/dist_train.sh', config, 2, '--work-dir', run, '--deepspeed', zero
    )
    assert status == OUT_OF_MEMORY, output[-4000:]
    assert output.count('error: out of memory in iteration 3 of the training (rank 1 of 2): ') == 1
    # The other rank may still say, with a traceback, that its neighbour has gone.
    assert 'what helps: ' in output and 'peak of this process' in output
    assert not (run / 'model.safetensors').exists() and (run / 'iter_2.pth').exists()


@pytest.mark.slow
def test_a_limit_of_the_system(run_tool, warm_python, repo_root, tmp_path):
    """What the process may have is less than the model asks for."""
    config = tmp_path / 'config.py'
    config.write_text(
        CONFIG.format(root=repo_root).replace('rank=1', 'rank=0, size=2**30')
        + "custom_hooks = [dict(type='LimitHook', extra=2**30)]\n"
    )
    status, output = run_tool(warm_python, 'tools/train.py', config, '--work-dir', tmp_path / 'run')
    assert status == OUT_OF_MEMORY, output[-4000:]
    assert 'error: out of memory in iteration 3 of the training (rank 0 of 1): ' in output
    assert 'you tried to allocate 4294967296 bytes' in output and 'Traceback' not in output
