"""Checkpoints of two processes: damage, a full disk, saves by time."""

import re
import shutil
import subprocess
import sys

import pytest

from pixelsail_mm.checkpoints.formats.resumable import MANIFEST
from tests.helpers.resumable import find_resumable

pytestmark = pytest.mark.slow


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth*'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Folder of a run of ZeRO-2, trained by the first test that wants it."""
    return tmp_path_factory.mktemp('runs') / 'zero2'


@pytest.fixture
def zero_run(finished, train, tmp_path):
    """A copy of the run: 6 iterations, saved after every second one and by time between."""
    if not finished.exists():
        options = ['default_hooks.checkpoint.interval_minutes=1e-6']
        status, output = train(finished, '--deepspeed', 'zero2', processes=2, options=options)
        assert status == 0, output[-4000:]
        assert 'iter_5.pth is complete' in output
    return shutil.copytree(finished, tmp_path / 'run')


def test_by_time_and_with_a_manifest(zero_run):
    assert names(zero_run) == ['iter_4.pth', 'iter_6.pth']
    assert sorted(path.name for path in (zero_run / 'iter_6.pth').iterdir()) == [
        MANIFEST,
        'mp_rank_00_model_states.pt',
        'zero_pp_rank_0_mp_rank_00_optim_states.pt',
        'zero_pp_rank_1_mp_rank_00_optim_states.pt',
    ]
    assert find_resumable(zero_run) == str(zero_run / 'iter_6.pth')


def test_all_processes_step_back_from_a_damaged_part(zero_run, train, logged):
    part = zero_run / 'iter_6.pth/zero_pp_rank_1_mp_rank_00_optim_states.pt'
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(bytes(content))
    (zero_run / 'iter_6.pth.unfinished').mkdir()
    status, output = train(zero_run, '--deepspeed', 'zero2', '--resume', processes=2)
    assert status == 0, output[-4000:]
    assert output.count(f'{part} is not usable (damaged in ') == 2
    assert output.count('removed 1 (iter_6.pth.unfinished)') == 1
    assert 'resumed epoch: 0, iter: 4' in output
    assert names(zero_run) == ['iter_4.pth', 'iter_6.pth']
    assert find_resumable(zero_run) == str(zero_run / 'iter_6.pth')


@pytest.fixture
def on_small_disk(repo_root, environment):
    """Run a command with a disk of some bytes, a tmpfs of the command's own, at a folder."""
    allowed = ['unshare', '--map-root-user', '--mount']
    if subprocess.run([*allowed, 'true'], capture_output=True).returncode:
        pytest.skip('this system lets nobody mount a disk in a namespace of its own')

    def run(size, folder, *command):
        line = f'mount -t tmpfs -o size={size} tmpfs "$0" && "$@"; status=$?; ls "$0"; exit $status'
        return subprocess.run(
            [*allowed, 'sh', '-c', line, str(folder), *map(str, command)],
            cwd=repo_root,
            # Processes of the tests' server would not see the disk.
            env=environment(PYTHON=sys.executable, PYTHON_EXEC=sys.executable),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=540,
        )

    return run


def test_a_disk_that_fills_while_writing(on_small_disk, tmp_path):
    """Nothing tells beforehand that the first save fills it; of the second one it is known."""
    small, work = tmp_path / 'small', tmp_path / 'work'
    small.mkdir()
    command = ['bash', 'tools/dist_train.sh', 'tests/test_engine/toy_config.py', 2]
    options = [f'default_hooks.checkpoint.out_dir={small}', 'train_cfg.max_iters=3']
    done = on_small_disk(
        16384, small, *command, '--work-dir', work, '--deepspeed', 'zero2',
        '--cfg-options', *options,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout[-4000:]
    saved = re.findall(r'checkpoint not saved: (\S+) does not fit on the disk', done.stdout)
    assert saved == [str(small / 'work' / name) for name in ('iter_2.pth', 'iter_3.pth')]
    assert done.stdout.count('(No space left on device)') == 1
    assert f'error: {saved[1]} does not fit on the disk: it needs about' in done.stdout
    assert (work / 'model.safetensors').exists()
