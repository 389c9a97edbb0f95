"""Check everything that the data loaders of a config read."""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset, build_pipeline
from pixelsail_mm.datasets.checks.leaves import EVALUATION, LOADERS, TRAIN, Leaf, find_leaves
from pixelsail_mm.datasets.checks.repeats import find_repeats
from pixelsail_mm.datasets.checks.report import ERROR, WARNING, Report
from pixelsail_mm.datasets.checks.samples import check_sample
from pixelsail_mm.datasets.files.image_keys import image_key
from pixelsail_mm.datasets.manifest.entries import where_to_get
from pixelsail_mm.errors import BadSampleError, MissingFilesError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.type_names import type_name

Progress = Callable[[Iterable, str], Iterable]
# What is run when a reader's own pipeline stops before it.
_LOADING = (dict(type='LoadImage'), dict(type='LoadMasks'), dict(type='LoadVisualPrompts'))
_LAST = 'BuildConversation'


def check_config(
    cfg: Mapping[str, Any],
    samples: int = 200,
    progress: Progress = lambda items, name: items,
    loaders: Sequence[str] = tuple(LOADERS),
) -> Report:
    """Open the annotations of all readers, load samples, compare training with evaluation images.

    Where the tokenizer cannot be loaded all the rest is checked, and the report says so.

    Args:
        cfg: The config.
        samples: Samples of each reader that are loaded, spread evenly over its items.
        progress: Wraps an iterable to show how far it is; called with it and its name.
        loaders: Config keys of the data loaders that are checked.

    Returns:
        All faults.
    """
    report = Report()
    images: dict[str, dict[str, set[str]]] = {TRAIN: {}, EVALUATION: {}}
    for leaf in find_leaves(cfg, loaders):
        report.readers[leaf.key] = _name(leaf)
        dataset = _open(leaf, report)
        if dataset is None:
            continue
        report.items[leaf.key] = len(dataset)
        _check_samples(dataset, leaf, samples, progress, report)
        if leaf.role == EVALUATION:
            _check_ids(dataset, leaf.key, report)
        paths = (
            dataset.image_path(i) for i in progress(range(len(dataset)), f'{leaf.key}: images')
        )
        images[leaf.role][leaf.key] = {image_key(path) for path in paths if path is not None}
        report.images[leaf.key] = len(images[leaf.role][leaf.key])
        report.paths[leaf.key] = _read_paths(dataset)
    _check_overlap(images, report)
    return report


def _name(leaf: Leaf) -> str:
    """Reader and annotation file of a leaf, which tell more than its place in the config."""
    parts = [type_name(leaf.cfg['type']), leaf.cfg.get('ann_file'), leaf.cfg.get('split')]
    return ', '.join(str(part) for part in parts if part)


def _open(leaf: Leaf, report: Report) -> PixelDataset | None:
    """Build a reader; what its annotation files lack is reported."""
    try:
        dataset = DATASETS.build(dict(leaf.cfg, pipeline=()))
    except MissingFilesError as error:
        for key, path in error.missing:
            path = os.path.normpath(path)
            report.add(
                leaf.key,
                'missing',
                f'{path} ({key})',
                hints=tuple(filter(None, (_similar(path), where_to_get(path)))),
            )
        return None
    except BadSampleError as error:
        report.add(leaf.key, 'annotations', str(error))
        return None
    for reason, times in dataset.skipped.items():
        # A faulty entry is counted with its key, what a rule of the format leaves out without.
        level = ERROR if ': ' in reason else WARNING
        report.add(leaf.key, 'left out', reason, level, times)
    for reason, times in dataset.noted.items():
        report.add(leaf.key, 'read otherwise', reason, WARNING, times)
    return dataset


def _read_paths(dataset: PixelDataset) -> list[str]:
    """Files and folders that a reader reads, without files of a folder that is among them."""
    paths = dict.fromkeys(map(os.path.normpath, dataset.required_paths().values()))
    return [path for path in paths if os.path.dirname(path) not in paths]


def _similar(path: str) -> str:
    """Name what exists and is spelt similarly."""
    parent, name = os.path.split(os.path.abspath(path))
    while parent != os.path.dirname(parent) and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    close = difflib.get_close_matches(name, os.listdir(parent), n=3, cutoff=0.5)
    if not close:
        return f'{parent} has nothing of a similar name'
    return 'did you mean ' + ' or '.join(os.path.join(parent, match) for match in close) + '?'


def _check_samples(
    dataset: PixelDataset, leaf: Leaf, samples: int, progress: Progress, report: Report
) -> None:
    transforms = _checked_transforms(leaf.cfg['pipeline'], report)
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(samples, len(dataset))).astype(int))
    for index in progress(indices.tolist(), f'{leaf.key}: samples'):
        check_sample(dataset, index, transforms, leaf.key, report)
    report.sampled[leaf.key] = len(indices)


def _check_ids(dataset: PixelDataset, key: str, report: Report) -> None:
    """Samples that share an id; also entries at fault that were not among the loaded samples."""
    found = find_repeats(dataset)
    known = {fault.message for fault in report.faults if fault.dataset == key}
    for error in found.unusable:
        if str(error) not in known:
            report.add(key, 'unusable entry', str(error))
    if found.different:
        report.add(key, 'ids', found.different_text, ERROR, len(found.different))
    if found.equal:
        report.add(key, 'ids', found.equal_text, WARNING, len(found.equal))


def _checked_transforms(pipeline: Sequence, report: Report) -> list[Callable]:
    """The reader's pipeline up to the tokens; at least image, masks and prompts."""
    types = [
        type_name(transform['type'] if isinstance(transform, Mapping) else type(transform))
        for transform in pipeline
    ]
    if _LAST not in types:
        return build_pipeline(_LOADING)
    end = types.index(_LAST)
    transforms = build_pipeline(pipeline[:end])
    try:
        return transforms + build_pipeline(pipeline[end : end + 1])
    except FileNotFoundError as error:  # of the tokenizer
        report.unchecked[f'lengths in tokens, and texts that hold tokens of the model: {error}'] = (
            None
        )
        return transforms


def _check_overlap(images: dict[str, dict[str, set[str]]], report: Report) -> None:
    evaluated = defaultdict(list)
    for key, keys in images[EVALUATION].items():
        for name in keys:
            evaluated[name].append(key)
    for key, keys in images[TRAIN].items():
        shared = keys & evaluated.keys()
        if not shared:
            continue
        report.overlap |= shared
        where = sorted({eval_key for name in shared for eval_key in evaluated[name]})
        report.add(
            key,
            'overlap',
            f'{len(shared)} of {len(keys)} training images are evaluation '
            f'images of {", ".join(where)} (e.g. {min(shared)}); leave them out with '
            'exclude_images=FILE, written by --write-overlap FILE',
            WARNING,
        )
