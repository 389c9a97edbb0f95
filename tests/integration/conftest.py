"""Run the tools as a user does, in processes of their own."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest

CONFIG = 'tests/test_engine/toy_config.py'
LIMIT = 540  # seconds


def end_with_children(process):
    """Kill a process and all that it started, whatever process groups they made."""
    parent = psutil.Process(process.pid)
    for running in (*parent.children(recursive=True), parent):
        running.kill()


@pytest.fixture
def run_tool(repo_root, environment):
    """Run a command in the repository; give (exit status, stdout and stderr together).

    Processes that wait for each other for ever are ended, and fail the test.
    """

    def run(*command, **variables):
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=repo_root,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            end_with_children(process)
            output, _ = process.communicate()
            pytest.fail(f'still running after {LIMIT} s; the end of its output:\n{output[-4000:]}')
        return process.returncode, output

    return run


@pytest.fixture
def train(run_tool, warm_python):
    """Train the toy in one process, or in several with tools/dist_train.sh."""

    def run(work_dir, *args, processes=1, options=()):
        tool = (
            [warm_python, 'tools/train.py', CONFIG]
            if processes == 1
            else ['bash', 'tools/dist_train.sh', CONFIG, processes]
        )
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


@pytest.fixture(scope='session')
def mixed_world(tmp_path_factory):
    """A small ShapesWorld with a file of text-only conversations."""
    from pixelsail_mm.worlds.shapes_world import make_shapes_world

    folder = tmp_path_factory.mktemp('shapes') / 'world'
    make_shapes_world(str(folder), 'mini', 0, dict(train=8, val=3, test=2))
    turns = [
        {'from': 'human', 'value': 'What is the red star?'},
        {'from': 'gpt', 'value': 'the red star'},
    ]
    (folder / 'text_only.json').write_text(
        json.dumps([dict(id=index, conversations=turns) for index in range(8)])
    )
    return folder


@pytest.fixture(scope='session')
def _runs_of_one(tmp_path_factory):
    """Folder for runs of one process, one for each config."""
    return tmp_path_factory.mktemp('single')


@pytest.fixture
def two_against_one(run_tool, warm_python, logged, mixed_world, _runs_of_one, tmp_path):
    """Train a config on two processes, and on one that accumulates over the same samples.

    Gives the work directories of the one and of the two, after the scalars ``keys`` of every step
    were found to agree.
    """

    def train_both(config, deepspeed, steps, keys, *options):
        one, two = _runs_of_one / Path(config).stem, tmp_path / 'run'
        options = ['optim_wrapper.optimizer.lr=1e-3', *options]
        data = dict(PIXELSAIL_DATA=str(mixed_world))
        if not one.exists():
            status, output = run_tool(
                warm_python,
                'tools/train.py',
                config,
                '--work-dir',
                one,
                '--cfg-options',
                *options,
                f'train_cfg.max_iters={2 * steps}',
                'default_hooks.logger.interval=2',
                'optim_wrapper.accumulative_counts=2',
                **data,
            )
            assert status == 0, output[-4000:]
        status, output = run_tool(
            'bash',
            'tools/dist_train.sh',
            config,
            2,
            '--work-dir',
            two,
            '--deepspeed',
            deepspeed,
            '--cfg-options',
            *options,
            f'train_cfg.max_iters={steps}',
            **data,
        )
        assert status == 0, output[-4000:]
        single, double = logged(one), logged(two)
        assert sorted(double) == list(range(1, steps + 1))
        for step, entry in double.items():
            for key in keys:
                expected = pytest.approx(single[2 * step][key], abs=1e-4, rel=1e-5)
                assert entry[key] == expected, (step, key)
        return one, two, output

    return train_both
