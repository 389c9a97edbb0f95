"""tools/_venv.sh on real virtual environments with a lock of hand-made wheels (no network)."""

import subprocess
import sys

import pytest


def installed_version(tree, module):
    code = f'import {module}; print({module}.VERSION)'
    done = tree.run(str(tree.venv / 'bin/python'), '-c', code)
    return done.stdout.strip()


@pytest.mark.slow
def test_install_reuse_and_new_lock(source_tree, tmp_path):
    first = source_tree.run(*source_tree.ensure_venv_command(), cwd=tmp_path, PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert 'creating the environment' in first.stdout
    assert f'python={source_tree.venv}/bin/python' in first.stdout
    assert installed_version(source_tree, 'tinydep') == '1.0'

    second = source_tree.run(*source_tree.ensure_venv_command(), cwd=tmp_path)
    assert 'using the environment' in second.stdout
    assert 'lock.txt' not in second.stdout

    source_tree.pin('tinydep', '2.0')
    third = source_tree.run(*source_tree.ensure_venv_command())
    assert third.returncode == 0, third.stderr
    assert 'completing the environment' in third.stdout
    assert installed_version(source_tree, 'tinydep') == '2.0'


@pytest.mark.slow
def test_failed_install_is_told_and_continued(source_tree):
    good = source_tree.lock.read_text()
    absent = source_tree.root / 'absent-1.0-py3-none-any.whl'
    source_tree.lock.write_text(f'{good}absent @ {absent.as_uri()}\n')
    failed = source_tree.run(*source_tree.ensure_venv_command(), PYTHON=sys.executable)
    assert failed.returncode != 0
    assert 'pip failed; see' in failed.stderr
    assert 'absent-1.0' in failed.stderr  # pip's own words
    assert 'python=' not in failed.stdout

    source_tree.lock.write_text(good)
    mended = source_tree.run(*source_tree.ensure_venv_command())
    assert mended.returncode == 0, mended.stderr
    assert 'completing the environment' in mended.stdout
    assert 'creating' not in mended.stdout


@pytest.mark.slow
def test_editable_install_follows_a_vanished_clone(source_tree):
    source_tree.run(*source_tree.ensure_venv_command(), PYTHON=sys.executable)
    (source_tree.venv / '.pixelsail_source').write_text('/nonexistent/clone\n')
    done = source_tree.run(*source_tree.ensure_venv_command())
    assert done.returncode == 0, done.stderr
    assert 'installing pixelsail_mm itself' in done.stdout
    assert 'lock.txt' not in done.stdout
    assert (source_tree.venv / '.pixelsail_source').read_text().strip() == str(source_tree.root)


@pytest.mark.slow
def test_two_installs_at_once_wait_for_each_other(source_tree):
    runs = [
        subprocess.Popen(
            source_tree.ensure_venv_command(),
            stdout=subprocess.PIPE,
            env=source_tree.environment(PYTHON=sys.executable),
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum('creating the environment' in output for output in outputs) == 1
    assert sum('waiting for another install' in output for output in outputs) == 1


def test_a_folder_that_is_no_environment_is_left_alone(source_tree):
    source_tree.write('precious/data.txt', 'keep me')
    done = source_tree.run(
        *source_tree.ensure_venv_command(),
        PYTHON=sys.executable,
        PIXELSAIL_VENV=str(source_tree.root / 'precious'),
    )
    assert done.returncode != 0
    assert 'is not empty and not a virtual environment' in done.stderr
    assert (source_tree.root / 'precious/data.txt').read_text() == 'keep me'


def test_unusable_python_is_named(source_tree):
    done = source_tree.run(*source_tree.ensure_venv_command(), PYTHON='/bin/false')
    assert done.returncode != 0
    assert 'PYTHON=/bin/false is not a Python 3.10, 3.11 or 3.12' in done.stderr
    assert not source_tree.venv.exists()


def test_missing_lock_is_named(source_tree):
    done = source_tree.run(*source_tree.ensure_venv_command(), PIXELSAIL_LOCK='/nonexistent/lock')
    assert done.returncode != 0
    assert 'lock file /nonexistent/lock does not exist' in done.stderr


def test_given_environment_without_packages_is_refused(source_tree):
    source_tree.write('bare/bin/python', f'#!/bin/sh\nexec {sys._base_executable} -I -S "$@"\n')
    (source_tree.root / 'bare/bin/python').chmod(0o755)
    done = source_tree.run(
        *source_tree.ensure_venv_command(),
        PIXELSAIL_NO_INSTALL='1',
        PIXELSAIL_VENV=str(source_tree.root / 'bare'),
    )
    assert done.returncode != 0
    assert 'has no torch, mmengine' in done.stderr
    assert 'unset PIXELSAIL_NO_INSTALL' in done.stderr


@pytest.mark.parametrize(
    'lock, folder',
    [
        ('requirements/lock.txt', '.venv'),
        ('requirements/lock-transformers5.txt', '.venv-transformers5'),
        ('/elsewhere/mine.txt', '.venv-mine'),
    ],
)
def test_each_lock_has_a_folder_of_its_own(source_tree, lock, folder):
    script = 'source "$0"; echo "$PIXELSAIL_VENV"'
    done = source_tree.run(
        'bash', '-c', script, str(source_tree.root / 'tools/_venv.sh'), PIXELSAIL_LOCK=lock
    )
    assert done.stdout == f'{source_tree.root / folder}\n'


def test_progress_names_large_downloads_and_errors(source_tree):
    lines = [
        'Ignoring pywin32: markers',
        *[f'Collecting p{i}' for i in range(9)],
        '  Downloading small-1.0.whl (99.9 MB)',
        '  Downloading https://host/a/torch-2.0.whl (887.9 MB)',
        '  Downloading big-1.0.whl (1.2 GB)',
        'ERROR: no space left',
    ]
    script = 'source "$0"; printf "%s\\n" "$@" | show_progress 10'
    done = source_tree.run('bash', '-c', script, str(source_tree.root / 'tools/_venv.sh'), *lines)
    assert 'package 10 of 10' in done.stdout
    assert 'downloading torch-2.0.whl (887.9 MB)' in done.stdout
    assert 'downloading big-1.0.whl (1.2 GB)' in done.stdout
    assert 'small' not in done.stdout
    assert done.stderr == 'ERROR: no space left\n'
