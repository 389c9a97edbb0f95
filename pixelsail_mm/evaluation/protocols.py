"""The two protocols of the benchmarks, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixelsail_mm.errors import ConfigError

#: ``strict`` is correct; ``paper`` does what the authors' release does, flaws included.
STRICT, PAPER = PROTOCOLS = ('strict', 'paper')


def check_protocol(protocol: str, metric: str) -> str:
    """Give the protocol back; raises ConfigError, naming the metric, if there is no such one."""
    if protocol not in PROTOCOLS:
        raise ConfigError(f'{metric}: protocol must be one of {PROTOCOLS}, got {protocol!r}')
    return protocol


def both_protocols(metric: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Config of a metric with the strict protocol, and again with the authors' one.

    Args:
        metric: Config with a ``prefix``; ``'refcoco_val'`` gives ``'refcoco_val'`` for the strict
            values and ``'refcoco_val_paper'`` for those that compare with published tables.

    Example:
        >>> [cfg['prefix'] for cfg in both_protocols(dict(type='RefSegMetric', prefix='val'))]
        ['val', 'val_paper']
    """
    return [dict(metric), dict(metric, prefix=f'{metric["prefix"]}_{PAPER}', protocol=PAPER)]
