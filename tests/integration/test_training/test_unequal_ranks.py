"""Two processes whose batches hold other numbers of images, masks and prompts, and other kinds.

One pair of processes trains many cases in a row, and compares itself with one process that has the
batches of both; see ``unequal_cases.py`` and ``unequal_components.py``. In the suite there are some
cases for each strategy. ``-m fuzz`` runs every pair of kinds for every strategy and every set of
heads, and cases that no run had before; ``FUZZ_SEED=N`` repeats those of seed N.
"""

import json
import os
import time
from itertools import product

import pytest

from pixelsail_mm.testing.tiny_models import byte_tokenizer
from tests.integration.test_training.test_text_only_rank import ZERO3
from tests.test_engine.unequal_cases import ALIKE, drawn, every_pair, kinds
from tests.test_engine.unequal_components import WATCHDOG

STRATEGIES, HEADS = ('none', 'zero1', 'zero2', 'zero3'), ('mask', 'point', 'box', 'eve')
#: Seconds for a step, of which the slowest took two on a busy machine.
LIMIT = 60
SEED = int(os.environ.get('FUZZ_SEED', time.time()))


def run(strategy, heads, accumulation=1, **steps):
    """Settings of one training, see ``unequal_run.py``."""
    return dict(
        name='-'.join([strategy, heads, str(accumulation), *map(str, steps.values())]),
        deepspeed=None if strategy == 'none' else strategy,
        heads=heads,
        steps=steps,
        accumulation=accumulation,
        hook=dict(limit=LIMIT),
    )


FEW = [
    run('none', 'mask', mode='every', seed=1, cases=24),
    run('none', 'box', mode='drawn', seed=2, cases=3, accumulation=2),
    run('zero1', 'point', mode='drawn', seed=3, cases=3),
    run('zero2', 'point', mode='every', seed=4, cases=24),
    run('zero3', 'mask', mode='every', seed=5, cases=24),
    run('zero3', 'point', mode='drawn', seed=6, cases=4),
    # With accumulation ZeRO-3 keeps until the step what the backward pass did not let go of: the
    # weights of a neck or projector that was called with a stand-in, in that process only.
    run('zero3', 'point', mode='drawn', seed=7, cases=2, accumulation=2),
    run('zero3', 'box', mode='drawn', seed=7, cases=2, accumulation=2),
    run('zero3', 'eve', mode='drawn', seed=7, cases=2, accumulation=2),
]
MANY = [[run(*which, mode='every', seed=0, cases=0)] for which in product(STRATEGIES, HEADS)]
MANY += [
    [run(*which, mode='drawn', seed=SEED + place, cases=60)]
    for place, which in enumerate(product(STRATEGIES, HEADS, (1, 2)))
]


def pytest_generate_tests(metafunc):
    if 'runs' in metafunc.fixturenames:
        nightly = metafunc.config.getoption('markexpr') == 'fuzz'
        chosen = MANY if nightly else [FEW]
        names = [one[0]['name'] for one in MANY] if nightly else ['few']
        metafunc.parametrize('runs', chosen, ids=names)


@pytest.mark.slow
@pytest.mark.fuzz
def test_no_mix_hangs_or_changes_a_gradient(run_tool, warm_python, tmp_path, runs):
    byte_tokenizer().save_pretrained(tmp_path / 'tokenizer')
    (tmp_path / 'zero3.json').write_text(json.dumps(ZERO3))
    for one in runs:
        if one['deepspeed'] == 'zero3':
            one.update(deepspeed=str(tmp_path / 'zero3.json'))
    settings = tmp_path / 'settings.json'
    settings.write_text(
        json.dumps(
            dict(tokenizer=str(tmp_path / 'tokenizer'), work_dir=str(tmp_path / 'run'), runs=runs)
        )
    )
    status, output = run_tool(
        warm_python,
        '-m',
        'pixelsail_mm.engine.processes',
        '--standalone',
        '--nproc_per_node',
        2,
        'tests/integration/test_training/unequal_run.py',
        settings,
    )
    done = [line for line in output.splitlines() if line.startswith('done ')]
    print('\n'.join(done))
    assert status == 0, f'seed {SEED}\n{output[-6000:]}'
    found = [json.loads(line.removeprefix('done ')) for line in done]
    assert [entry['run'] for entry in found] == [one['name'] for one in runs]
    assert all(entry['cases'] >= 1 for entry in found)


def test_every_kind_meets_every_kind():
    steps = every_pair()
    every = len(kinds(1)) + len(kinds(2))
    assert len(kinds(1)) == 5 and len(kinds(2)) == 13 and len(steps) == ALIKE + every**2
    meetings = {
        tuple((batch.size, batch.images, batch.masks, batch.prompts) for batch in step.batches)
        for step in steps
    }
    assert len(meetings) == every**2


def test_drawn_cases_begin_alike_and_depend_on_the_seed_alone():
    assert drawn(3, 5) == drawn(3, 5) != drawn(4, 5)
    cases = [[step for step in drawn(3, 5) if step.case == case] for case in range(5)]
    for steps in cases:
        assert len(steps) > ALIKE
        for step in steps[:ALIKE]:
            first, second = step.batches
            assert (first.size, first.images) == (second.size, second.images)


def test_watchdog_says_where_it_was(run_tool, warm_python):
    code = (
        'import time\n'
        'from tests.test_engine.unequal_components import Watchdog\n'
        "Watchdog(1).expect('case 3, rank 1, step 7')\n"
        'time.sleep(100)'
    )
    status, output = run_tool(warm_python, '-c', code)
    assert status == WATCHDOG
    assert 'no end after 1 s: case 3, rank 1, step 7' in output and 'most recent call' in output
