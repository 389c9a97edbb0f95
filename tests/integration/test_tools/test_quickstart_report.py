"""The table that closes the quickstart."""

import json

import pytest

METRICS = {'refseg/cIoU': 0.512, 'shuffled/cIoU': 0.25}
ROWS = [['cIoU', 'refseg/cIoU', '>=0.45'], ['control', 'shuffled/cIoU', '<=0.30']]


@pytest.fixture
def run_report(run_command, warm_python, tmp_path):
    def run(metrics, rows, *more):
        results = tmp_path / 'results.json'
        results.write_text(json.dumps({'metrics': metrics}))
        options = [part for row in rows for part in ('--row', *row)]
        tool = (warm_python, 'tools/misc/quickstart_report.py', results)
        return run_command(*tool, *options, *more)

    return run


def test_all_targets_met(run_report, tmp_path):
    (tmp_path / 'vis').mkdir()
    for i in range(10):
        (tmp_path / 'vis' / f'{i}.jpg').touch()
    done = run_report(
        METRICS,
        ROWS,
        '--stage',
        'data=3',
        '--stage',
        'training=400',
        '--pictures',
        str(tmp_path / 'vis'),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split() == ['cIoU', '0.512', '>=0.45', 'pass']
    assert lines[2].split() == ['control', '0.250', '<=0.3', 'pass']
    assert [line.split()[-1] for line in lines[3:6]] == ['3s', '400s', '403s']
    assert str(tmp_path / 'vis' / '7.jpg') in lines
    assert lines[-1] == f'... and 2 more in {tmp_path / "vis"}'


@pytest.mark.parametrize('key, value', [('refseg/cIoU', 0.449), ('shuffled/cIoU', 0.301)])
def test_one_missed_target_fails(run_report, key, value):
    done = run_report({**METRICS, key: value}, ROWS)
    assert done.returncode == 1
    assert done.stdout.count('FAIL') == 1
    assert done.stdout.count('pass') == 1


def test_missing_metric_is_named_with_those_there(run_report):
    done = run_report({'refseg/cIoU': 0.5}, ROWS)
    assert done.returncode != 0
    assert "no metric 'shuffled/cIoU'; it has ['refseg/cIoU']" in done.stderr


def test_malformed_target_is_refused(run_report):
    done = run_report(METRICS, [['cIoU', 'refseg/cIoU', '0.45']])
    assert done.returncode != 0
    assert "target '0.45' is neither" in done.stderr


@pytest.mark.parametrize('control, code', [(0.255, 0), (0.257, 1)])
def test_target_as_a_share_of_another_metric(run_report, control, code):
    done = run_report(
        {**METRICS, 'shuffled/cIoU': control}, [['control', 'shuffled/cIoU', '<=0.5*refseg/cIoU']]
    )
    assert done.returncode == code
    assert '<=0.256' in done.stdout
