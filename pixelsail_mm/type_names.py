"""Parts of configs and their types: a name, a class and a dotted path mean the same part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.utils import get_object_from_string

from pixelsail_mm.registry import REGISTRIES, SCOPE, known_parts


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


def parts_of(node: Any) -> Iterator[Any]:
    """All dicts of nested settings, outer ones first; each may be changed when it comes.

    Args:
        node: A config, or dicts and lists in each other.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from parts_of(item)
    elif isinstance(node, (Mapping, Config)):
        yield node
        for value in node.values():
            yield from parts_of(value)


def name_types(node: Any) -> None:
    """Replace every class by its registered name, in place.

    MMEngine's configs with imports have classes as ``type``, and a copy of such a config has dotted
    paths. What no registry of this package or above it knows stays as it is.

    Args:
        node: As for :func:`parts_of`.
    """
    for part in parts_of(node):
        name = _registered_name(part['type']) if 'type' in part else None
        if name is not None:
            part['type'] = name


def _registered_name(kind: Any) -> str | None:
    """Name under which this package's registries find ``kind``; None if it is fine as it is."""
    if isinstance(kind, str):
        if kind.count('.') < 2:
            own = kind.removeprefix(f'{SCOPE}.')
            return own if own != kind else None
        kind = get_object_from_string(kind)
    if not callable(kind):
        return None
    parts = (item for registry in REGISTRIES for item in known_parts(registry).items())
    return next((name for name, part in parts if part is kind), None)
