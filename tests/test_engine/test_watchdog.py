"""The thread that ends a process: when it does, what it says, and when it does not."""

import subprocess
from unittest import mock

import psutil
import pytest

from pixelsail_mm.engine.hooks import WatchdogHook
from pixelsail_mm.engine.watchdog import STAGES, Watchdog, stage
from pixelsail_mm.errors import HUNG

WAIT = """
import multiprocessing, sys, time
from pixelsail_mm.engine import watchdog
limits, seconds = {}, {}
child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,))
child.start()
print(child.pid, flush=True)
def wait_for_nobody():
    time.sleep(seconds)
with watchdog.watching(limits, rank=3):
    watchdog.enter('step', 17)
    wait_for_nobody()
child.kill()
"""


@pytest.fixture
def python(warm_python, repo_root, environment):
    def start(limits, seconds):
        code = WAIT.format(repr(limits), seconds)
        return subprocess.Popen(
            [warm_python, '-c', code],
            cwd=repo_root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_limit_ends_process_and_workers(python):
    run = python(dict(step=1.5), 100)
    out, err = run.communicate(timeout=90)
    assert run.returncode == HUNG
    assert 'error: rank 3 after iteration 17: computing a step with the other processes' in err
    assert 'longer than 1.5 s' in err and 'it is in wait_for_nobody (<string>:' in err
    assert 'default_hooks.watchdog.step is the limit' in err
    gone, _ = psutil.wait_procs(
        [psutil.Process(int(out))] if psutil.pid_exists(int(out)) else [], 10
    )
    assert gone or not psutil.pid_exists(int(out))


@pytest.mark.parametrize('limits', [dict(step=None), dict(step=1000)])
def test_no_limit_no_end(python, limits):
    run = python(limits, 1.5)
    assert run.wait(timeout=90) == 0


def test_time_in_which_the_process_was_stopped_does_not_count():
    """After `fg`, or when a virtual machine goes on; the thread sees one long tick."""
    watch = Watchdog(dict(step=30.0), 0)
    watch.enter('step')
    ended = []
    watch._end = lambda *what: ended.append(what)
    clock = iter([0.0, 1.0, 3600.0, 3601.0])
    ticks = iter([False, False, False, True])
    watch._over.wait = lambda _: next(ticks)
    with mock.patch('pixelsail_mm.engine.watchdog.time.monotonic', lambda: next(clock)):
        watch.run()
    assert ended == [] and watch._now[2] == pytest.approx(4.0)


def test_stages_are_the_arguments_of_the_hook():
    assert WatchdogHook(step=7).limits == {
        name: 7 if name == 'step' else limit for name, (_, limit) in STAGES.items()
    }


def test_a_stage_where_nobody_watches():
    with stage('save'):
        pass
