"""A work directory has one training at a time, and no lock outlives its process."""

import os
import subprocess

import pytest

from pixelsail_mm.engine.work_dir_lock import LOCK, work_dir_lock
from pixelsail_mm.errors import ConfigError

HOLD = """
import os, sys, time
from pixelsail_mm.engine.work_dir_lock import work_dir_lock
with work_dir_lock({!r}):
    if os.fork() == 0:  # a worker that outlives the training by a moment
        os.close(1)
        time.sleep(20)
        os._exit(0)
    print(os.getpid(), flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(warm_python, repo_root, environment, tmp_path):
    process = subprocess.Popen(
        [warm_python, '-c', HOLD.format(str(tmp_path / 'run'))],
        cwd=repo_root,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    yield int(process.stdout.readline()), process
    process.kill()
    process.communicate()


def test_the_owner_is_named_and_a_killed_one_is_none(holder, tmp_path):
    pid, process = holder
    with pytest.raises(ConfigError, match=rf'run is in use: process {pid} on .* since 20'):
        with work_dir_lock(tmp_path / 'run'):
            pass
    os.kill(pid, 9)
    process.wait(timeout=60)
    with work_dir_lock(tmp_path / 'run'):  # although a forked process runs on
        pass


def test_an_owner_that_is_just_writing(holder, tmp_path):
    (tmp_path / 'run' / LOCK).write_text('{"pid": 1')
    with pytest.raises(ConfigError, match='another process holds'):
        with work_dir_lock(tmp_path / 'run'):
            pass


def test_one_run_after_the_other(tmp_path):
    for _ in range(2):
        with work_dir_lock(tmp_path):
            assert (tmp_path / LOCK).is_file()
