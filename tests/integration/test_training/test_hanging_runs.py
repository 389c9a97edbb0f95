"""Something that never comes ends a training, with a line that says what it waited for."""

import os
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pixelsail_mm.errors import HUNG

pytestmark = pytest.mark.slow

CONFIG = 'tests/test_engine/signal_config.py'
# Without validation: its limit is another one.
OPTIONS = ('--cfg-options', 'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None')


@pytest.fixture
def port():
    """A port of this machine that somebody listens on who never says a word."""
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        yield silent.getsockname()[1]


@pytest.fixture
def rank(repo_root, environment, warm_python, tmp_path):
    """Start one of two processes, without a launcher that would end the other."""
    started = []

    def start(number, master_port, *options):
        variables = dict(RANK=number, LOCAL_RANK=number, WORLD_SIZE=2, MASTER_PORT=master_port)
        process = subprocess.Popen(
            [
                *(warm_python, 'tools/train.py', CONFIG, '--launcher', 'pytorch'),
                *('--deepspeed', 'none', '--work-dir', str(tmp_path), *OPTIONS, *options),
            ],
            cwd=repo_root,
            env=environment(
                MASTER_ADDR='127.0.0.1', **{key: str(value) for key, value in variables.items()}
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_worker_asleep_in_a_transform(run_tool, warm_python, tmp_path):
    status, output = run_tool(
        *(warm_python, 'tools/train.py', CONFIG, '--work-dir', tmp_path, *OPTIONS),
        *('train_dataloader.dataset.type=HangingDataset', 'train_dataloader.num_workers=1'),
        'default_hooks.watchdog.data=3',
        HANGING_PID=str(tmp_path / 'pid'),
    )
    assert status == HUNG, output[-4000:]
    assert 'error: rank 0 after iteration 2: waiting for the data loader took longer' in output
    assert 'default_hooks.watchdog.data' in output and '_try_get_data' in output
    worker = int((tmp_path / 'pid').read_text())
    end = time.monotonic() + 30
    while psutil.pid_exists(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker), 'the worker sleeps on'


def test_a_stopped_rank(rank, tmp_path):
    """What a machine that swaps, or a debugger, does to one of many processes."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        master_port = probe.getsockname()[1]
    options = ['default_hooks.watchdog.step=4', 'custom_hooks.0.rank=1']
    waiting = rank(0, master_port, *options)
    rank(1, master_port, *options, 'custom_hooks.0.number=SIGSTOP')
    output, _ = waiting.communicate(timeout=240)
    assert waiting.returncode == HUNG, output[-4000:]
    assert 'error: rank 0 after iteration 2: computing a step with the other' in output
    assert 'that one hangs or was stopped' in output and 'watchdog.step' in output


def test_the_port_of_another_program(rank, port):
    """Rank 0 cannot have it; the others would wait for an answer."""
    first = rank(0, port)
    second = rank(1, port, 'default_hooks.watchdog.start=4')
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 2, output[-4000:]
    assert f'cannot join each other at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)' in output
    assert 'Traceback' not in output
    output, _ = second.communicate(timeout=240)
    assert second.returncode == HUNG, output[-4000:]
    assert 'error: rank 1: starting: joining the other processes' in output
    assert 'default_hooks.watchdog.start' in output


def test_a_second_run_in_the_same_folder(run_tool, warm_python, tmp_path):
    from pixelsail_mm.engine.work_dir_lock import work_dir_lock

    with work_dir_lock(tmp_path):
        before = sorted(tmp_path.iterdir())
        status, output = run_tool(
            warm_python, 'tools/train.py', CONFIG, '--work-dir', tmp_path, *OPTIONS
        )
        assert status == 2 and 'Traceback' not in output
        assert f'work_dir {tmp_path} is in use: process {os.getpid()} on' in output
        assert sorted(Path(tmp_path).iterdir()) == before
