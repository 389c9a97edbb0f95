"""The list of public data sets that configs, documentation and checker share."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

# The folder that paths in the manifest begin with.
DATA_FOLDER = 'data'
_SPLIT = '{split}'
# Arguments of readers that name a file.
_FILE_KEYS = ('ann_file', 'split_file', 'captions_file')


@cache
def _read() -> dict[str, Any]:
    text = (files('pixelsail_mm.datasets.manifest') / 'manifest.yml').read_text(encoding='utf-8')
    return yaml.safe_load(text)


def load_manifest() -> dict[str, Any]:
    """Give the content of ``manifest.yml``: ``version``, ``archives`` and ``datasets``; a copy."""
    return copy.deepcopy(_read())


def dataset_cfg(
    name: str, *, root: str = DATA_FOLDER, evaluation: str | None = None, **overrides: Any
) -> dict[str, Any]:
    """Config of the reader of a data set.

    Args:
        name: Its key in ``manifest.yml``.
        root: Folder with all data sets, ``data`` in the manifest.
        evaluation: Evaluation split: the reader of its files in test mode; None for training.
        **overrides: Arguments of the reader that are added or replaced.

    Raises:
        KeyError: No data set has this name.
        ValueError: It has no such evaluation split.
    """
    datasets = _read()['datasets']
    if name not in datasets:
        raise KeyError(f'data set {name!r} is not in manifest.yml; choose from {sorted(datasets)}')
    entry, mode = datasets[name], {}
    reader = copy.deepcopy(entry['reader'])
    if evaluation is not None:
        splits = evaluation_splits(name)
        if evaluation not in splits:
            raise ValueError(
                f'data set {name!r} has no evaluation split {evaluation!r}; choose from {splits}'
            )
        reader = _fill(entry.get('evaluation_reader', reader), evaluation)
        mode = dict(test_mode=True)
    return {**moved_reader(reader, root), **mode, **overrides}


def moved_reader(reader: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Config of a reader, or of a mixture, that finds the folder ``data`` at another place.

    Args:
        reader: The config. Other folders than those below ``data`` stay.
        root: Folder with all data sets.
    """
    moved = dict(reader)
    folder = reader.get('data_root')
    if folder is not None and osp.normpath(folder).split(osp.sep)[0] == DATA_FOLDER:
        moved['data_root'] = osp.normpath(osp.join(root, osp.relpath(folder, DATA_FOLDER)))
    if 'datasets' in reader:
        moved['datasets'] = [moved_reader(part, root) for part in reader['datasets']]
    return moved


def evaluation_splits(name: str) -> list[str]:
    """Splits on which a data set of the manifest is evaluated; empty if it is not."""
    return list(_read()['datasets'][name].get('splits', {}).get('evaluation', ()))


def evaluation_loaders(name: str) -> list[dict[str, Any]]:
    """Configs of a data set's test data loaders, one per evaluation split, with only a dataset.

    The rest is the model's, see :func:`pixelsail_mm.config.benchmark.with_model`.
    """
    return [dict(dataset=dataset_cfg(name, evaluation=split)) for split in evaluation_splits(name)]


def _fill(value: Any, split: str) -> Any:
    """Copy of a reader's config with the split in the place of ``{split}``."""
    if isinstance(value, dict):
        return {key: _fill(item, split) for key, item in value.items()}
    return value.replace(_SPLIT, split) if isinstance(value, str) else value


def archive_bytes(name: str) -> str:
    """Size of an archive in words; empty if it is not known."""
    size = _read()['archives'][name].get('bytes')
    return f'{size / 1e9:.1f} GB' if size else ''


def where_to_get(path: str) -> str | None:
    """Give the source of a file or folder of a known data set.

    Args:
        path: As a config names it; the folder of all data sets may have any name.

    Returns:
        A sentence, or None if no data set of the manifest lies there.
    """
    path = osp.normpath(osp.join(osp.sep, path))
    for name, entry in _read()['datasets'].items():
        readers = [
            entry['reader'],
            *(dataset_cfg(name, evaluation=split) for split in evaluation_splits(name)),
        ]
        below = [
            osp.relpath(named, DATA_FOLDER)
            for reader in readers
            for named in paths_of(reader).values()
        ]
        if any(path.endswith(osp.sep + named) for named in below):
            archives = [_read()['archives'][key]['url'] for key in entry.get('archives', ())]
            more = f'; archives: {", ".join(archives)}' if archives else ''
            return f'part of {entry["title"]}, from {entry["source"]}{more}'
    return None


def paths_of(reader: dict[str, Any]) -> dict[str, str]:
    """Files and folders that the config of a reader names: key -> path below its data root."""
    named = {key: reader[key] for key in _FILE_KEYS if key in reader}
    named.update({f'data_prefix.{key}': folder for key, folder in reader['data_prefix'].items()})
    return {key: osp.normpath(osp.join(reader['data_root'], name)) for key, name in named.items()}
