"""SIGTERM, Ctrl-C and a killed launcher: a training saves, ends, and goes on as if undisturbed."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pixelsail_mm.errors import STOPPED

pytestmark = pytest.mark.slow

CONFIG = 'tests/test_engine/signal_config.py'


@pytest.fixture
def run(run_tool, warm_python):
    """Train the toy that sends signals."""

    def start(work_dir, *args, processes=1, deepspeed='none', options=()):
        tool = (
            [warm_python, 'tools/train.py', CONFIG]
            if processes == 1
            else ['bash', 'tools/dist_train.sh', CONFIG, processes, '--deepspeed', deepspeed]
        )
        options = ['train_dataloader.num_workers=1', *options]
        return run_tool(*tool, '--work-dir', work_dir, *args, '--cfg-options', *options)

    return start


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """Folder for runs that nothing stops, one for each setting."""
    return tmp_path_factory.mktemp('undisturbed')


@pytest.mark.parametrize(
    'processes, deepspeed, number, target, rank',
    [
        (1, 'none', 'SIGINT', 'all', 0),  # as from a terminal: the workers get it too
        (2, 'none', 'SIGTERM', 'self', 1),  # one process alone is told
        (2, 'zero2', 'SIGTERM', 'self', 0),
    ],
)
def test_a_signal_loses_no_iteration(
    run, undisturbed, tmp_path, processes, deepspeed, number, target, rank
):
    whole = undisturbed / f'{deepspeed}{processes}'
    status, output = run(whole, processes=processes, deepspeed=deepspeed)
    assert status == 0, output[-4000:]

    how = dict(number=number, to=target, rank=rank)
    options = [f'custom_hooks.0.{key}={value}' for key, value in how.items()]
    options.append('val_dataloader=None')
    options += ['val_cfg=None', 'val_evaluator=None']
    status, output = run(tmp_path, processes=processes, deepspeed=deepspeed, options=options)
    assert status == STOPPED, output[-4000:]
    # Two processes hear of it one iteration later.
    done = 3 if processes == 1 else 4
    said = f'at iteration {done} of 6: saved {tmp_path}/iter_{done}.pth; continue with --resume'
    assert output.count(said) == 1
    assert 'Traceback' not in output
    assert not (tmp_path / 'model.safetensors').exists()

    status, output = run(tmp_path, '--resume', processes=processes, deepspeed=deepspeed)
    assert status == 0, output[-4000:]
    found, expected = (load_file(folder / 'model.safetensors') for folder in (tmp_path, whole))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=0, atol=0 if deepspeed == 'none' else 1e-6
        )


def test_a_validation_is_left(run, tmp_path):
    """It may take hours; launchers wait half a minute."""
    options = [
        'custom_hooks.0.number=SIGTERM',
        'custom_hooks.0.during=val',
        'train_cfg.val_interval=2',
    ]
    options += ['custom_hooks.0.before=1', 'custom_hooks.0.rank=1']
    status, output = run(tmp_path, processes=2, options=options)
    assert status == STOPPED, output[-4000:]
    assert 'val is left without metrics' in output and 'a/mean' not in output
    assert 'iter_4.pth; continue with --resume' in output


def test_ranks_of_a_killed_launcher_save_and_end(repo_root, environment, tmp_path):
    """Real interpreters: what starts the processes is the point."""
    ranks = []
    launched = subprocess.Popen(
        [
            *('bash', 'tools/dist_train.sh', CONFIG, '2', '--deepspeed', 'none'),
            *('--work-dir', str(tmp_path), '--cfg-options', 'train_cfg.max_iters=1000000'),
            *('custom_hooks.0.number=SIGKILL', 'custom_hooks.0.to=launcher'),
            *('val_dataloader=None', 'val_cfg=None', 'val_evaluator=None'),
        ],
        cwd=repo_root,
        env=environment(PYTHON=sys.executable, PYTHON_EXEC=sys.executable),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while launched.poll() is None:
        ranks = psutil.Process(launched.pid).children() or ranks
        time.sleep(0.05)
    assert launched.returncode == -signal.SIGKILL and len(ranks) == 2
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    for process in alive:
        process.kill()
    assert len(gone) == 2, 'ranks outlive their launcher'
    assert [path.name for path in tmp_path.glob('iter_*.pth')], 'they ended without saving'


SRUN = """#!/usr/bin/env bash
# A scheduler of two tasks that wants its machine back when the training has begun.
while [ "${1:0:1}" = - ]; do case "$1" in -p) shift 2 ;; *) shift ;; esac; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & tasks[task]=$!
done
until [ -e "$WORK_DIR/iter_2.pth" ]; do sleep 0.1; done
kill -TERM "${tasks[@]}"
highest=0
for task in 0 1; do
  status=0; wait "${tasks[task]}" || status=$?
  [ "$status" -gt "$highest" ] && highest=$status
done
exit "$highest"
"""
SCONTROL = """#!/bin/sh
echo "scontrol: $*"
"""


def test_slurm_queues_a_stopped_training_again(run_tool, tmp_path):
    """Slurm is not here: srun and scontrol are scripts that act as it does at a time limit."""
    tools, work_dir = tmp_path / 'bin', tmp_path / 'run'
    tools.mkdir()
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    status, output = run_tool(
        *('bash', 'tools/slurm_train.sh', 'gpu', 'toy', CONFIG, work_dir, '--deepspeed', 'none'),
        *('--resume', '--cfg-options', 'train_cfg.max_iters=1000000'),
        *(
            'default_hooks.checkpoint.interval=2',
            'val_dataloader=None',
            'val_cfg=None',
            'val_evaluator=None',
        ),
        PATH=f'{tools}{os.pathsep}{os.environ["PATH"]}',
        WORK_DIR=str(work_dir),
        MASTER_PORT=port,
        SLURM_JOB_ID='17',
        REQUEUE='1',
    )
    assert status == STOPPED, output[-4000:]
    assert 'scontrol: requeue 17' in output
    assert 'stopped by SIGTERM at iteration' in output
