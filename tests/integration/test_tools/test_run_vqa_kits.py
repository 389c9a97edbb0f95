"""run_vlmevalkit.py and run_lmms_eval.py as commands, with stubs of the kits."""

import json
import os

import pytest

STUBS = 'tests/test_evaluation/test_harnesses/kit_stubs'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Folder of a config and the weights of a tiny random model."""
    from pixelsail_mm.testing.tiny_models import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture
def tool(run_command, warm_python, repo_root):
    def run(name, *arguments, path=STUBS):
        done = run_command(
            warm_python,
            f'tools/misc/{name}.py',
            *arguments,
            PYTHONPATH=os.pathsep.join((str(repo_root), str(repo_root / path))),
        )
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
        return done, answers

    return run


@pytest.mark.slow
def test_vlmevalkit(tool, checkpoint):
    done, answers = tool(
        'run_vlmevalkit',
        '--kit',
        STUBS,
        '--config',
        checkpoint,
        '--name',
        'mine',
        '--max-new-tokens',
        '3',
        '--',
        '--data',
        'MME',
        'MMBench_DEV_EN',
    )
    assert done.returncode == 0, done.stderr
    assert [(answer['model'], answer['dataset']) for answer in answers] == [
        ('mine', 'MME'),
        ('mine', 'MMBench_DEV_EN'),
    ]
    assert [answer['message'][-1]['value'].count('\n') for answer in answers] == [0, 3]


@pytest.mark.slow
def test_lmms_eval(tool, checkpoint):
    done, answers = tool(
        'run_lmms_eval',
        '--model_args',
        f'config={checkpoint},max_new_tokens=3',
        '--tasks',
        'mme,other',
    )
    assert done.returncode == 0, done.stderr
    assert [(answer['model'], answer['task']) for answer in answers] == [
        ('pixelsail', 'mme'),
        ('pixelsail', 'other'),
    ]


def test_a_folder_without_the_kit(tool, tmp_path):
    done, _ = tool('run_vlmevalkit', '--kit', tmp_path, '--config', 'x')
    assert done.returncode == 1
    assert f'{tmp_path}/run.py: no such file' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_kits_that_are_not_installed(tool, tmp_path):
    (tmp_path / 'run.py').write_text('import vlmeval_is_not_here\n')
    done, _ = tool('run_vlmevalkit', '--kit', tmp_path, '--config', 'x')
    assert done.returncode == 1 and f'pip install -e {tmp_path}' in done.stderr
    (tmp_path / 'lmms_eval.py').write_text('raise ImportError("No module named lmms_eval")\n')
    done, _ = tool('run_lmms_eval', '--tasks', 'mme', path=tmp_path)
    assert done.returncode == 1
    assert 'pip install lmms-eval' in done.stderr and 'Traceback' not in done.stderr
