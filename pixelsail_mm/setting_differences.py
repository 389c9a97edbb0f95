"""Where two nested settings differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(stored: Any, now: Any, key: str = '') -> Iterator[tuple[str, Any, Any]]:
    """List the differences between two nested settings of plain values.

    Args:
        stored: Dicts and lists of plain values.
        now: Likewise.
        key: Name of both, for the results.

    Yields:
        tuple: (key such as ``model.distill[0].loss_weight``, stored, present); None where one side
        has nothing. Lists of different lengths are compared as a whole.
    """
    if isinstance(stored, dict) and isinstance(now, dict):
        for name in sorted(stored.keys() | now.keys()):
            yield from differences(
                stored.get(name), now.get(name), f'{key}.{name}' if key else name
            )
    elif isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        for index, pair in enumerate(zip(stored, now)):
            yield from differences(*pair, f'{key}[{index}]')
    elif stored != now:
        yield key, stored, now
