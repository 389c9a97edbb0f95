"""Checks of single samples, of those that readers and transforms reject and of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.checks.report import WARNING, Report
from pixelsail_mm.datasets.sample_source import Record, SampleSource
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.tokenization import SEG_TOKEN

# Polygons may touch the border; annotation tools also overshoot by rounding.
_TOLERANCE = 1.0


def check_sample(
    dataset: SampleSource, index: int, transforms: Sequence[Callable], key: str, report: Report
) -> None:
    """Load one sample and add everything that is wrong with it to a report.

    ``transforms`` are run on its record one after the other; ``key`` is the reader's in the config.
    """
    rng = np.random.default_rng([dataset.seed, index])
    try:
        record = dataset.record(index, rng)
    except BadSampleError as error:
        report.add(key, 'unusable entry', str(error))
        return
    notes: list[str] = []
    results = dict(record, rng=rng, notes=notes)
    try:
        for transform in transforms:
            results = transform(results)
    except BadSampleError as error:
        report.add(key, 'unusable sample', f'item {index}: {error}')
        return
    for note in notes:
        report.add(
            key, 'read otherwise', f'item {index} ({record.get("img_path")}): {note}', WARNING
        )
    where = f'item {index} ({record.get("img_path") or "text only"})'
    _check_counts(record, where, key, report)
    if results.get('img') is not None:
        _check_masks(record, results, where, key, report)


def _check_counts(record: Record, where: str, key: str, report: Report) -> None:
    segs = sum(turn['gpt'].count(SEG_TOKEN) for turn in record['conversation'])
    if segs != len(record['masks']):
        report.add(
            key,
            'masks',
            f'{where}: {segs} {SEG_TOKEN} in the answers, {len(record["masks"])} masks',
        )


def _check_masks(record: Record, results: dict, where: str, key: str, report: Report) -> None:
    height, width = results['ori_shape']
    no_target = record.get('meta', {}).get('no_target')
    for i, mask in enumerate(results.get('gt_masks', ())):
        # An empty list is the spelling of "no target"; anything else should show something.
        if not mask.any() and record['masks'][i] != [] and not no_target:
            report.add(key, 'empty mask', f'{where}: masks[{i}] has no pixel', WARNING)
    named = [(f'masks[{i}]', mask) for i, mask in enumerate(record['masks'])]
    named += [(f'prompts[{i}]', prompt.get('mask')) for i, prompt in enumerate(record['prompts'])]
    for name, mask in named:
        for x, y in _points(mask):
            if not (
                -_TOLERANCE <= x <= width + _TOLERANCE and -_TOLERANCE <= y <= height + _TOLERANCE
            ):
                report.add(
                    key,
                    'out of range',
                    f'{where}: {name} has the point ({x:g}, {y:g}), '
                    f'the image has {width}x{height} pixels; is it the image that was '
                    'annotated?',
                )
                break


def _points(mask: Any) -> Iterable[tuple[float, float]]:
    """Corners of all polygons of a mask's spelling."""
    if isinstance(mask, dict):
        for part in mask.get('union', ()):
            yield from _points(part)
    elif isinstance(mask, (list, tuple)):
        for part in mask:
            if not isinstance(part, dict):  # run lengths have no corners
                yield from zip(part[::2], part[1::2])
