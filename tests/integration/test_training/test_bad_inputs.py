"""Samples that cannot be read, in commands: one readable line, or a validation that goes on."""

import pytest

CONFIG = """
_base_ = '{root}/tests/test_engine/toy_config.py'
custom_imports = dict(imports=[
    'tests.test_engine.toy_components', 'tests.test_engine.test_loops.test_unreadable'])
train_dataloader = dict(num_workers={workers}, dataset=dict(
    _delete_=True, type='Pictures', test_mode=False, bad={bad_train}))
_sampler = dict(type='DefaultSampler', shuffle=False)
val_dataloader = [dict(batch_size=2, num_workers={workers}, sampler=_sampler,
                       dataset=dict(type='Pictures', bad=[3]))]
val_evaluator = [dict(type='MeanScore', prefix='a')]
train_cfg = dict(max_iters=2, val_interval=1)
"""


@pytest.fixture
def config(repo_root, tmp_path):
    def write(**settings):
        path = tmp_path / 'config.py'
        path.write_text(CONFIG.format(root=repo_root, **settings))
        return path

    return write


def tool(python, processes):
    if processes == 1:
        return [python, 'tools/train.py']
    return ['bash', 'tools/dist_train.sh']


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_no_usable_sample_is_one_line(run_tool, warm_python, config, tmp_path, processes):
    path = config(workers=1, bad_train=list(range(5)))
    count = [processes] if processes > 1 else []
    status, output = run_tool(
        *tool(warm_python, processes), path, *count, '--work-dir', tmp_path / 'run'
    )
    assert status == 2, output[-4000:]
    assert 'error: pictures: 4 samples in a row cannot be used, the last one: ' in output
    assert '.png: img_path: cannot be decoded. Check data_root' in output
    assert 'Traceback' not in output


@pytest.mark.slow
def test_two_processes_agree_on_what_a_validation_lacks(run_tool, config, tmp_path):
    """Of two processes one has the sample; a sampler gives them the first one twice."""
    path, run = config(workers=1, bad_train=[]), tmp_path / 'run'
    status, output = run_tool('bash', 'tools/dist_train.sh', path, 2, '--work-dir', run)
    assert status == 0, output[-4000:]
    assert 'at iteration 2: 1 of 5 samples of a cannot be read, so its metrics are NaN' in output
    assert 'a/mean: nan  a/unreadable_samples: 1' in output
    assert (run / 'model.safetensors').exists()
