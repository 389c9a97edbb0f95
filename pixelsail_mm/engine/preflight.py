"""Checks that take a second before a training that takes days."""

import logging
import os
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.logging import print_log

from pixelsail_mm.datasets.checks.repeats import find_repeats
from pixelsail_mm.datasets.files.annotation_files import find_file, require_paths
from pixelsail_mm.datasets.files.image_folders import absent_choices
from pixelsail_mm.datasets.sample_source import SampleSource
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import DATASETS


def _paths(node, where: str) -> Iterator[tuple[str, str]]:
    """Find (config key, path) of the files and folders that a dataset config names."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _paths(item, f'{where}[{index}]')
    if not isinstance(node, dict):
        return
    root = node.get('data_root') or ''
    for key, value in node.items():
        name = f'{where}.{key}'
        if isinstance(value, str) and key.endswith('_file') and value:
            yield name, find_file(os.path.join(root, value))
        elif key == 'data_prefix' and isinstance(value, dict):
            folders = {
                f'{name}.{kind}': os.path.join(root, path) for kind, path in value.items() if path
            }
            # Whether the other folders have all images, the reader checks when it is built.
            needless = absent_choices(folders) if _searches_folders(node) else {}
            yield from (item for item in folders.items() if item[0] not in needless)
        elif key != 'pipeline':
            yield from _paths(value, name)


def _searches_folders(reader: dict) -> bool:
    """Whether a reader takes an image from any of its folders."""
    kind = reader.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return getattr(kind, 'searches_folders', False)


def check_files(cfg: Config, loaders: Sequence[str]) -> None:
    """List every missing file of the data sets at once, and missing starting weights.

    Args:
        cfg: The config.
        loaders: Keys of the data loaders that the run uses.

    Raises:
        MissingFilesError: Something is missing; the message lists all of it with its config keys.
    """
    wanted = [item for loader in loaders for item in _paths(cfg.get(loader), loader)]
    if cfg.get('load_from'):
        wanted.append(('load_from', os.path.expanduser(cfg.load_from)))
    require_paths({key: path for key, path in wanted if '://' not in path}, 'config')


def check_sample_ids(dataset, key: str) -> None:
    """Find samples that share an id before the model predicts them, not in the metrics after that.

    Samples listed twice are said; metrics count them once.

    Args:
        dataset: A test set, or a mixture of some; other libraries' are not looked at.
        key: Its place in the config.

    Raises:
        ConfigError: Different samples share an id.
        BadSampleError: An entry gives no sample.
    """
    if not isinstance(dataset, SampleSource):
        for index, part in enumerate(getattr(dataset, 'datasets', ())):
            check_sample_ids(part, f'{key}.datasets[{index}]')
        return
    found = find_repeats(dataset)
    if found.unusable:
        raise found.unusable[0]
    paths = getattr(dataset, 'required_paths', dict)().values()
    where = f'{key} ({", ".join(path for path in paths if os.path.isfile(path)) or dataset.name})'
    if found.different:
        raise ConfigError(f'{where}: {found.different_text}')
    if found.equal:
        print_log(f'{where}: {found.equal_text}', logger='current', level=logging.WARNING)
