"""tools/misc/check_data.py on files, as a user runs it."""

import os
import subprocess
import sys

import pytest

from pixelsail_mm.datasets.shapes_world import make_shapes_world

CONFIG = 'configs/pixelsail/pixelsail_mini.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('check') / 'world'
    make_shapes_world(root, 'mini', counts=dict(train=6, val=2, test=4))
    return root


@pytest.fixture
def check(repo_root, data):
    def run(*arguments, config=CONFIG):
        environment = dict(os.environ, PYTHONPATH=str(repo_root), PIXELSAIL_DATA=str(data),
                           OMP_NUM_THREADS='1')
        done = subprocess.run(
            [sys.executable, 'tools/misc/check_data.py', config, *map(str, arguments)],
            cwd=repo_root, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    return run


def test_sound_data(check):
    status, output, progress = check('--samples', '3')
    assert status == 0, output
    assert 'train_dataloader.dataset' in output and '0 errors, 0 warnings' in output
    assert 'samples' in progress


def test_faults_and_exit_status(check, data):
    image = data / 'images' / 'train' / '000002.png'
    content = image.read_bytes()
    image.unlink()
    try:
        status, output, _ = check()
    finally:
        image.write_bytes(content)
    assert status == 1 and '000002.png' in output and 'no such image' in output


def test_overlap_is_written_and_excluded(check, tmp_path):
    options = ['test_dataloader.0.dataset.split=train', 'val_dataloader.0.dataset.split=train']
    overlap = tmp_path / 'overlap.txt'
    status, output, _ = check('--write-overlap', overlap, '--cfg-options', *options)
    assert status == 0 and 'evaluation images' in output and '6 images written' in output
    assert len(overlap.read_text().splitlines()) == 6
    assert check('--strict', '--cfg-options', *options)[0] == 1


def test_a_missing_config(check):
    status, _, errors = check(config='configs/gone.py')
    assert status == 2 and 'gone.py: no such file' in errors
