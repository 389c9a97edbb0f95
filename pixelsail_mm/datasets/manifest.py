"""The list of public data sets that configs, documentation and checker share."""

from __future__ import annotations

import copy
import os.path as osp
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def _read() -> dict[str, Any]:
    text = (files('pixelsail_mm.datasets') / 'manifest.yml').read_text(encoding='utf-8')
    return yaml.safe_load(text)


def load_manifest() -> dict[str, Any]:
    """Give the content of ``manifest.yml``: ``version``, ``archives`` and ``datasets``; a copy."""
    return copy.deepcopy(_read())


def dataset_cfg(name: str, *, evaluation: bool = False, **overrides: Any) -> dict[str, Any]:
    """Config of the reader of a data set.

    Args:
        name: Its key in ``manifest.yml``.
        evaluation: Take ``evaluation_reader`` where the data set is evaluated with other files,
            and test mode.
        **overrides: Arguments of the reader that are added or replaced.

    Raises:
        KeyError: No data set has this name.
    """
    datasets = _read()['datasets']
    if name not in datasets:
        raise KeyError(f'data set {name!r} is not in manifest.yml; choose from {sorted(datasets)}')
    entry = datasets[name]
    reader = entry.get('evaluation_reader', entry['reader']) if evaluation else entry['reader']
    mode = dict(test_mode=True) if evaluation else {}
    return {**copy.deepcopy(reader), **mode, **overrides}


def archive_bytes(name: str) -> str:
    """Size of an archive in words; empty if it is not known."""
    size = _read()['archives'][name].get('bytes')
    return f'{size / 1e9:.1f} GB' if size else ''


def where_to_get(path: str) -> str | None:
    """Say where a file or folder of a known data set comes from.

    Args:
        path: As a config names it.

    Returns:
        A sentence, or None if no data set of the manifest lies there.
    """
    path = osp.relpath(path)
    for entry in _read()['datasets'].values():
        reader = entry['reader']
        names = [reader.get('ann_file', ''), reader.get('split_file', ''),
                 *reader['data_prefix'].values()]
        if path in (osp.normpath(osp.join(reader['data_root'], name)) for name in names if name):
            archives = [_read()['archives'][key]['url'] for key in entry.get('archives', ())]
            more = f'; archives: {", ".join(archives)}' if archives else ''
            return f'part of {entry["title"]}, from {entry["source"]}{more}'
    return None
