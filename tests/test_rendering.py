"""Pages and reports: their files ship, are well-formed, and name only what they are given."""

import re

import pytest
from jinja2 import UndefinedError

from pixelsail_mm.benchmarks import checkpoints, data, expert_cache, step
from pixelsail_mm.rendering import render


def test_files_ship(repo_root):
    """A file of another kind than setup.py and MANIFEST.in name would be missing in a wheel."""
    files = (repo_root / 'pixelsail_mm').rglob('*.*')
    kinds = {path.suffix for path in files if '.mim' not in path.parts and path.is_file()}
    for name in ('setup.py', 'MANIFEST.in'):
        shipped = re.findall(r'\*(\.\w+)', (repo_root / name).read_text())
        assert kinds - {'.py', '.pyc'} <= set(shipped), name


def test_a_missing_value_is_named():
    with pytest.raises(UndefinedError, match="'rows' is undefined"):
        render('benchmarks/precision.md.jinja')


def test_reports_of_benchmarks():
    figures = dict.fromkeys(
        'train_seconds train_seconds_best train_flops peak_flops share_of_peak share_of_peak_best '
        'predict_seconds predict_seconds_best'.split(),
        0.5,
    )
    lines = step.report(figures | dict(parameters=7.4e6, tokens=699, threads=2)).splitlines()
    assert len(lines) == 7 and lines[0].split() == ['parameters', '7.40', 'M']
    figures = dict.fromkeys(
        'samples_per_second index_file_gigabytes index_seconds index_cpu_seconds index_gigabytes '
        'import_gigabytes prepare_seconds prepare_gigabytes cached_seconds cached_gigabytes '
        'metric_seconds'.split(),
        0.5,
    )
    counts = dict(index_records=3_000_000, prepare_workers=2, metric_masks=1000)
    lines = data.report(figures | counts).splitlines()
    assert len(lines) == 6 and '3,000,000 records, 0.50 GiB' in lines[1]
    figures = dict.fromkeys(
        'bare_seconds caching_seconds ratio bare_cpu_seconds caching_cpu_seconds cpu_ratio '
        'gigabytes'.split(),
        0.5,
    )
    lines = expert_cache.report(figures | dict(images=1000, feature=[256, 32, 32], threads=1))
    assert '256x32x32' in lines and len(lines.splitlines()) == 5
    lines = checkpoints.report(dict(float32_loading_ratio=1.0, shards=4)).splitlines()
    assert lines[0].endswith('1.000   (at most 1.3)') and lines[1].endswith(' 4.000')
