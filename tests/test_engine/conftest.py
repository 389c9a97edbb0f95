"""Run the tools as a user does, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = 'tests/test_engine/toy_config.py'


@pytest.fixture
def run_tool(repo_root):
    """Run a command in the repository; give (exit status, stdout and stderr together)."""

    def run(*command, **variables):
        environment = dict(os.environ, PYTHONPATH=str(repo_root), PYTHON=sys.executable,
                           OMP_NUM_THREADS='1', **variables)
        done = subprocess.run([str(part) for part in command], cwd=repo_root, env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=540)
        return done.returncode, done.stdout

    return run


@pytest.fixture
def train(run_tool):
    """Train the toy in one process, or in several with tools/dist_train.sh."""

    def run(work_dir, *args, processes=1, options=()):
        tool = [sys.executable, 'tools/train.py', CONFIG] if processes == 1 else [
            'bash', 'tools/dist_train.sh', CONFIG, processes]
        extra = ['--cfg-options', *options] if options else []
        return run_tool(*tool, '--work-dir', work_dir, *args, *extra)

    return run


@pytest.fixture
def logged():
    """Read the scalars of a run, of all its parts: {iteration: {name: value}}."""

    def read(work_dir):
        scalars = {}
        for path in sorted(Path(work_dir).glob('*/vis_data/*.json')):
            if path.name != 'config.json':
                for line in path.read_text().splitlines():
                    entry = json.loads(line)
                    if 'loss' in entry:
                        scalars[entry['iter']] = entry
        return scalars

    return read
