"""Fixtures and settings that all tests share."""

import logging
import os
import random
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

REPO_ROOT = Path(__file__).resolve().parents[1]

# Shared machines are slow at times: examples are bounded in number, not in time.
settings.register_profile('pixelsail', deadline=None, max_examples=50, derandomize=True)
settings.load_profile('pixelsail')

# Cases of each fuzz test: in the suite, and when they alone are asked for (`-m fuzz`).
FUZZ_CASES, NIGHTLY_FUZZ_CASES = 8, 10_000

# Seconds that a command may take.
COMMAND_LIMIT = 540

# No test may reach for a model hub; a missing local file must fail at once.
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
# Tiny tensors: more threads only fight each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _is_nightly(config) -> bool:
    return config.getoption('markexpr') == 'fuzz'


def pytest_configure(config):
    """Set the number of fuzz cases: the same few each time, or many that no run had before."""
    nightly = _is_nightly(config)
    settings.register_profile(
        'fuzz',
        settings.get_profile('pixelsail'),
        max_examples=int(
            os.environ.get('FUZZ_CASES', NIGHTLY_FUZZ_CASES if nightly else FUZZ_CASES)
        ),
        derandomize=not nightly,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def pytest_collection_modifyitems(config, items):
    """Mark what is in ``tests/integration`` and ``tests/fuzz``; skip ``gpu`` tests without CUDA."""
    for item in items:
        if item.path.is_relative_to(REPO_ROOT / 'tests/integration'):
            item.add_marker('integration')
        if item.path.is_relative_to(REPO_ROOT / 'tests/fuzz'):
            item.add_marker('fuzz')
            if _is_nightly(config):
                item.add_marker(pytest.mark.timeout(0))
    gpu_items = [item for item in items if item.get_closest_marker('gpu')]
    if gpu_items and not _cuda_available():
        skip = pytest.mark.skip(reason='needs a CUDA device; torch.cuda.is_available() is False')
        for item in gpu_items:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    """Same random numbers for every test, whichever tests run and in whatever order."""
    random.seed(0)
    np.random.seed(0)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(0)


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """Top folder of the source tree."""
    return REPO_ROOT


@pytest.fixture(scope='session')
def warm_python(tmp_path_factory):
    """Command that runs Python in a process of its own, without waiting for imports.

    See ``tests/warm_python/server.py``. ``sys.executable`` is for tests of what happens at start.
    """
    folder = tmp_path_factory.mktemp('warm')
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / 'socket'))
    listening.listen(64)
    server = subprocess.Popen(
        [sys.executable, '-m', 'tests.warm_python.server', str(listening.fileno())],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        pass_fds=[listening.fileno()],
    )
    listening.close()
    client = [sys.executable, '-I', '-S', str(REPO_ROOT / 'tests/warm_python/client.py')]
    command = folder / 'python'
    parts = [*client, str(folder / 'socket'), sys.executable]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(parts)} "$@"\n')
    command.chmod(0o755)
    yield str(command)
    server.stdin.close()
    server.wait()


@pytest.fixture
def environment(repo_root, warm_python):
    """Give the variables of a command: the tests' own and more; None removes one."""

    def variables(**more):
        # torchrun starts its processes with PYTHON_EXEC.
        added = dict(PYTHONPATH=str(repo_root), PYTHON=warm_python, PYTHON_EXEC=warm_python)
        both = dict(os.environ, OMP_NUM_THREADS='1', **added) | more
        return {key: value for key, value in both.items() if value is not None}

    return variables


@pytest.fixture
def run_command(repo_root, environment):
    """Run a command in the repository; give its ``CompletedProcess``, streams as text."""

    def run(*command, cwd=repo_root, **variables):
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT,
        )

    return run


@pytest.fixture(scope='session')
def parity_dir() -> Path:
    """Folder of parity fixtures: ``$PIXELSAIL_PARITY_DIR`` or ``tests/data/parity``."""
    folder = Path(os.environ.get('PIXELSAIL_PARITY_DIR', REPO_ROOT / 'tests/data/parity'))
    if not (folder / 'model_config.json').is_file():
        pytest.fail(
            f'{folder}/model_config.json is missing; PIXELSAIL_PARITY_DIR must name a '
            'folder with the files that tests/data/parity/README.md lists'
        )
    return folder


WORLD_COUNTS = {'train': 24, 'val': 4, 'test': 12}


def _draw(tmp_path_factory, preset: str) -> Path:
    from pixelsail_mm.worlds.shapes_world import make_shapes_world

    folder = tmp_path_factory.mktemp('shapes_world') / preset
    make_shapes_world(folder, preset, seed=3, counts=WORLD_COUNTS)
    return folder


@pytest.fixture(scope='session')
def world_counts() -> dict:
    """Images per split of the two worlds."""
    return dict(WORLD_COUNTS)


@pytest.fixture(scope='session')
def mini_world(tmp_path_factory) -> Path:
    """A mini ShapesWorld of 24 + 4 + 12 images (polygons, PNG)."""
    return _draw(tmp_path_factory, 'mini')


@pytest.fixture(scope='session')
def full_world(tmp_path_factory) -> Path:
    """A full ShapesWorld of 24 + 4 + 12 images (run lengths, JPEG)."""
    return _draw(tmp_path_factory, 'full')


@pytest.fixture(params=['mini_world', 'full_world'])
def world(request) -> Path:
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope='session')
def public_layout(tmp_path_factory) -> tuple[Path, Path]:
    """A small ShapesWorld with JPEG images, and the same in the layout of the public data sets."""
    from pixelsail_mm.worlds.shapes_world import make_shapes_world
    from pixelsail_mm.worlds.shapes_world.formats.public_layout import write_public_layout

    folder = tmp_path_factory.mktemp('layout')
    make_shapes_world(folder / 'world', 'full', counts=dict(train=16, val=6, test=8))
    write_public_layout(folder / 'world', folder / 'data')
    return folder / 'world', folder / 'data'


@pytest.fixture
def said():
    """Warnings of the log, as they come."""
    from mmengine.logging import MMLogger

    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
