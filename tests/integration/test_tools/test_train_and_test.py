"""The command lines of training and testing."""

import json
import sys

import pytest
import torch

TOY = 'tests/test_engine/toy_config.py'


@pytest.fixture
def tool(run_command):
    def run(*command):
        done = run_command(*command)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_help_needs_no_heavy_import(tool, script):
    status, output, imports = tool(sys.executable, '-X', 'importtime', f'tools/{script}', '--help')
    assert status == 0 and '--cfg-options' in output
    assert 'argparse' in imports
    assert 'mmengine' not in imports and 'torch' not in imports


@pytest.mark.parametrize(
    'script, usage',
    [
        ('dist_train.sh', 'CONFIG NPROC'),
        ('dist_test.sh', 'CONFIG CHECKPOINT NPROC'),
        ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG WORK_DIR'),
        ('slurm_test.sh', 'PARTITION JOB_NAME CONFIG CHECKPOINT'),
    ],
)
def test_scripts_say_how_to_call_them(tool, script, usage):
    status, _, errors = tool('bash', f'tools/{script}')
    assert status == 2 and usage in errors


def test_number_of_processes_is_checked(tool):
    status, _, errors = tool('bash', 'tools/dist_train.sh', TOY, 'two')
    assert status == 2 and "got 'two'" in errors


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['absent.py'], 'config absent.py: no such file'),
        (
            [TOY, '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'],
            'gone.json   (train_dataloader.dataset.ann_file)',
        ),
        ([TOY, '--cfg-options', 'modle.type=X'], 'did you mean model?'),
    ],
)
def test_mistakes_before_the_heavy_imports_give_one_message(tool, warm_python, arguments, message):
    status, output, errors = tool(warm_python, 'tools/train.py', *arguments)
    assert status == 2
    assert message in errors
    assert 'Traceback' not in errors + output


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, message',
    [
        (
            ['model.type=ToyModle'],
            "type='ToyModle' is not a registered model; did you mean ToyModel",
        ),
        (['deepspeed=zero4'], '--deepspeed zero4: neither a preset'),
    ],
)
def test_mistakes_in_components_give_one_message(tool, warm_python, tmp_path, options, message):
    status, _, errors = tool(
        warm_python, 'tools/train.py', TOY, '--work-dir', tmp_path, '--cfg-options', *options
    )
    assert status == 2
    assert message in errors and 'Traceback' not in errors


@pytest.mark.slow
def test_train_then_test_in_one_and_two_processes(tool, warm_python, tmp_path):
    status, output, errors = tool(
        warm_python,
        'tools/train.py',
        TOY,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_cfg.max_iters=2',
    )
    assert status == 0, errors
    weights = tmp_path / 'model.safetensors'
    results = []
    for count, start in (
        (1, [warm_python, 'tools/test.py', TOY, weights]),
        (2, ['bash', 'tools/dist_test.sh', TOY, weights, 2]),
    ):
        out = tmp_path / f'results{count}.json'
        status, output, errors = tool(*start, '--work-dir', tmp_path, '--out', out)
        assert status == 0, errors
        assert 'weights from' in output and 'loaded' in output
        results.append(json.loads(out.read_text()))
    one, two = results
    assert one['processes'] == 1 and two['processes'] == 2
    for name in ('a/mean', 'a/count', 'b/mean', 'b/count'):
        assert one['metrics'][name] == pytest.approx(two['metrics'][name], rel=1e-5)
    assert one['config'] == TOY and len(one['checkpoint']['sha256']) == 64
    assert [part['samples'] for part in one['datasets']] == [5, 3]
    assert one['datasets'][0]['dataloader']['dataset']['name'] == 'a'
    assert one['versions']['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert one['seed'] == 0


@pytest.mark.slow
def test_broken_checkpoint_of_a_test_gives_one_message(tool, warm_python, tmp_path):
    path = tmp_path / 'w.safetensors'
    path.write_bytes(b'\x10')
    status, _, errors = tool(warm_python, 'tools/test.py', TOY, path, '--work-dir', tmp_path)
    assert status == 2
    assert 'w.safetensors: not a readable safetensors file' in errors
    assert 'Traceback' not in errors
