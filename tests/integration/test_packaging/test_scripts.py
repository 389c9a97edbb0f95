"""run_tests.sh, quickstart.sh and .ci/run, on a small source tree with this test's own Python."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# The environment that runs this test, used as it is.
HERE = {'PIXELSAIL_VENV': sys.prefix, 'PIXELSAIL_NO_INSTALL': '1'}


def shell_scripts(repo_root):
    return sorted([*repo_root.glob('tools/**/*.sh'), repo_root / '.ci/run'])


def test_scripts_are_valid_bash(repo_root, source_tree):
    scripts = shell_scripts(repo_root)
    assert len(scripts) >= 4
    for script in scripts:
        done = source_tree.run('bash', '-n', str(script))
        assert done.returncode == 0, done.stderr


def test_commands_are_executable(repo_root):
    commands = [path for path in shell_scripts(repo_root) if not path.name.startswith('_')]
    assert [path for path in commands if not path.stat().st_mode & 0o100] == []


@pytest.fixture
def test_tree(source_tree):
    source_tree.write(
        'tests/test_two.py',
        """\
        import pathlib


        def test_good():
            pathlib.Path('ran_good').touch()


        def test_bad():
            assert False
    """,
    )
    subprocess.run(
        [sys.executable, '-m', 'ruff', 'format', '-q', '.'], cwd=source_tree.root, check=True
    )
    return source_tree


def run_tests(tree, *arguments, **variables):
    command = str(tree.root / 'tools/run_tests.sh')
    return tree.run(command, *arguments, cwd='/', **{**HERE, **variables})


def test_run_tests_passes_arguments_and_ends_with_pytests_line(test_tree):
    done = run_tests(test_tree, '-k', 'good')
    assert done.returncode == 0, done.stdout + done.stderr
    assert ' 1 passed in ' in done.stdout.splitlines()[-1]
    assert (test_tree.root / 'ran_good').exists()


def test_run_tests_returns_pytests_exit_code(test_tree):
    assert run_tests(test_tree).returncode == 1
    assert run_tests(test_tree, '-k', 'absent').returncode == 5


def test_run_tests_stops_at_a_lint_error(test_tree):
    test_tree.write('broken.py', 'import os\n')
    done = run_tests(test_tree)
    assert done.returncode != 0
    assert 'broken.py:1:8: F401' in done.stdout
    assert 'ruff found the problems above' in done.stderr
    assert not (test_tree.root / 'ran_good').exists()


def test_run_tests_stops_at_an_unformatted_file(test_tree):
    test_tree.write('loose.py', 'x  =  1\n')
    done = run_tests(test_tree)
    assert done.returncode != 0
    assert 'loose.py' in done.stdout
    assert 'ruff format .' in done.stderr
    assert not (test_tree.root / 'ran_good').exists()


def test_ci_keeps_one_environment_per_lock(source_tree):
    source_tree.write('tools/run_tests.sh', '#!/bin/sh\necho "$PIXELSAIL_VENV" "$@"\n')
    done = source_tree.run(
        'bash', str(source_tree.root / '.ci/run'), cwd='/', CI='true', XDG_CACHE_HOME='/cache'
    )
    digest = hashlib.sha256(source_tree.lock.read_bytes()).hexdigest()[:12]
    assert done.stdout.split()[0] == f'/cache/pixelsail_mm/venv-{digest}'
    other = source_tree.root / 'requirements' / 'lock-other.txt'
    other.write_text('# another\n')
    done = source_tree.run(
        'bash',
        str(source_tree.root / '.ci/run'),
        CI='true',
        XDG_CACHE_HOME='/cache',
        PIXELSAIL_LOCK='requirements/lock-other.txt',
    )
    digest = hashlib.sha256(other.read_bytes()).hexdigest()[:12]
    assert done.stdout.split()[0] == f'/cache/pixelsail_mm/venv-{digest}'


@pytest.fixture
def quick_tree(source_tree, repo_root):
    """Stand-ins for tools and launchers: each logs its arguments; the report is the real one."""
    log = 'import pathlib, sys\nwith open("calls", "a") as f: print(*sys.argv, file=f)\n'
    source_tree.write(
        'tools/dataset_converters/make_shapes_world.py',
        log
        + ('out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])\nout.mkdir(parents=True)\n'),
    )
    source_tree.write(
        'tools/train.py',
        log
        + (
            'work = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1])\n'
            '(work / "last_checkpoint").write_text(str(work / "iter_8.pth"))\n'
        ),
    )
    metrics = json.dumps({'refseg/cIoU': 0.8, 'mcq/accuracy': 0.7, 'shuffled/cIoU': 0.2})
    source_tree.write(
        'tools/test.py',
        log
        + (
            'out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])\n'
            f'out.write_text(\'{{"metrics": {metrics}}}\')\n'
        ),
    )
    for name in ('train', 'test'):
        launcher = source_tree.root / 'tools' / f'dist_{name}.sh'
        launcher.write_text(f'#!/bin/sh\nexec "$PYTHON" tools/{name}.py "$@"\n')
        launcher.chmod(0o755)
    source_tree.write(
        'tools/misc/quickstart_report.py',
        (repo_root / 'tools/misc/quickstart_report.py').read_text(),
    )
    return source_tree


def run_quickstart(tree, **variables):
    return tree.run(str(tree.root / 'tools/quickstart.sh'), cwd='/', **{**HERE, **variables})


def test_quickstart_runs_every_stage_and_prints_the_table(quick_tree):
    done = run_quickstart(quick_tree)
    assert done.returncode == 0, done.stderr
    called = [line.split()[0] for line in (quick_tree.root / 'calls').read_text().splitlines()]
    assert called == [
        'tools/dataset_converters/make_shapes_world.py',
        'tools/train.py',
        'tools/test.py',
    ]
    assert done.stdout.count('pass') == 3
    for stage in ('environment', 'data', 'training', 'evaluation', 'all'):
        assert f'time: {stage}' in done.stdout


def test_quickstart_draws_once(quick_tree):
    run_quickstart(quick_tree)
    (quick_tree.root / 'calls').unlink()
    done = run_quickstart(quick_tree)
    assert done.returncode == 0, done.stderr
    assert 'already drawn' in done.stdout
    assert 'make_shapes_world' not in (quick_tree.root / 'calls').read_text()


def test_quickstart_smoke_option_keeps_its_numbers_apart(quick_tree):
    done = run_quickstart(quick_tree, PIXELSAIL_QUICK='1')
    assert done.returncode == 0, done.stderr
    draw, train, _ = (quick_tree.root / 'calls').read_text().splitlines()
    assert '--train 32' in draw
    assert 'max_iters=8' in train
    assert 'the numbers mean nothing' in done.stdout
    assert (quick_tree.root / 'work_dirs/quickstart_smoke/results.json').is_file()
    assert not (quick_tree.root / 'work_dirs/quickstart').exists()


def test_quickstart_fails_when_a_stage_or_a_target_does(quick_tree):
    quick_tree.write(
        'tools/test.py', (quick_tree.root / 'tools/test.py').read_text().replace('0.8', '0.1')
    )
    missed = run_quickstart(quick_tree)
    assert missed.returncode != 0
    assert 'FAIL' in missed.stdout
    assert 'a target was missed' in missed.stderr

    quick_tree.write('tools/train.py', 'raise SystemExit(3)\n')
    stopped = run_quickstart(quick_tree)
    assert stopped.returncode == 3
    assert 'evaluation' not in stopped.stdout


def readme_commands(repo_root):
    """Words of every shell command in the README, in its order."""
    text = (repo_root / 'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'^```bash\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def data_paths(node):
    """Everything below ``data/`` that a config names."""
    if isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from data_paths(value)
    elif isinstance(node, str) and node.startswith('data/'):
        yield node


def test_commands_of_the_readme_train_on_what_earlier_ones_drew(quick_tree, repo_root, monkeypatch):
    from pixelsail_mm.config import read_config

    monkeypatch.delenv('PIXELSAIL_DATA', raising=False)
    assert run_quickstart(quick_tree).returncode == 0
    draw, train, _ = (quick_tree.root / 'calls').read_text().splitlines()
    by_quickstart = os.path.relpath(
        Path(draw.partition('--out ')[2]).resolve(), quick_tree.root.resolve()
    )
    drawn, checked = [], set()
    for words in readme_commands(repo_root):
        tools = [Path(word).name for word in words if word.startswith('tools/')]
        if 'quickstart.sh' in tools:
            drawn.append(by_quickstart)
        elif 'make_shapes_world.py' in tools:
            drawn.append(words[words.index('--out') + 1])
        elif 'shapes_world_to_public.py' in tools:
            assert words[-2] in drawn
            drawn.append(words[-1])
        elif {'train.py', 'dist_train.sh'} & set(tools):
            config = next(word for word in words if word.startswith('configs/'))
            options = words[words.index('--cfg-options') + 1 :] if '--cfg-options' in words else []
            cfg = read_config(str(repo_root / config), options)
            if cfg.data_root == 'data':
                continue  # the public data sets, which users bring
            # The quickstart's config has to run right after it.
            folders = [by_quickstart] if config in train.split() else drawn
            paths = set(data_paths(cfg.to_dict()))
            assert paths and all(
                any(f'{path}/'.startswith(f'{folder}/') for folder in folders) for path in paths
            ), (config, folders, paths)
            checked.add(Path(config).stem)
    assert {'pixelsail_mini', 'pixelsail_tiny'} <= checked
