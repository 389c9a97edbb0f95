"""Names of types: a name, a class and a dotted path as ``type`` mean the same part."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

from pixelsail_mm import registry as registries
from pixelsail_mm.registry import SCOPE


def type_name(kind: Any) -> str | None:
    """Give the bare name of a ``type``, to compare it with.

    Args:
        kind: A class or function, its name, the name with a scope or a module before it, or None.

    Returns:
        The name, e.g. ``'DiceLoss'``; None for None.
    """
    if kind is None:
        return None
    return (
        kind.rpartition('.')[2]
        if isinstance(kind, str)
        else getattr(kind, '__name__', type(kind).__name__)
    )


def name_types(node: Any) -> None:
    """Replace every class by its registered name, in place.

    MMEngine's configs with imports have classes as ``type``, and a copy of such a config has dotted
    paths. What no registry of this package or above it knows stays as it is.

    Args:
        node: A config, or dicts and lists in each other.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            name_types(item)
    elif isinstance(node, (dict, Config)):
        if 'type' in node:
            name = _registered_name(node['type'])
            if name is not None:
                node['type'] = name
        for value in node.values():
            name_types(value)


def _registered_name(kind: Any) -> str | None:
    """Name under which this package's registries find ``kind``; None if it is fine as it is."""
    if isinstance(kind, str):
        if kind.count('.') < 2:
            own = kind.removeprefix(f'{SCOPE}.')
            return own if own != kind else None
        kind = get_object_from_string(kind)
    if not callable(kind):
        return None
    for registry in map(registries.__dict__.get, registries.__all__):
        for name in _names(registry, kind):
            return name
    return None


def _names(registry: Registry | Any, kind: Any) -> list[str]:
    """Names of ``kind`` in a registry or above it, without those that something else hides."""
    found, hidden = [], set()
    while isinstance(registry, Registry):
        found += [
            name
            for name, part in registry.module_dict.items()
            if part is kind and name not in hidden
        ]
        hidden |= registry.module_dict.keys()
        registry = registry.parent
    return found
