"""Names of heads: in configs, in checkpoints, in both spellings."""

from __future__ import annotations

from collections.abc import Mapping

from pixelsail_mm.errors import ConfigError

#: The head whose weights and losses had their names before there were others.
MASK = 'mask'


def head_configs(mask_head: dict | None, heads: Mapping[str, dict] | None) -> dict[str, dict]:
    """Configs of all heads by name, from both spellings of a config.

    Args:
        mask_head: ``model.mask_head``, short for ``heads.mask``.
        heads: ``model.heads``; entries that are None are left out.

    Raises:
        ConfigError: There is none, ``mask`` is given twice, or a name is no identifier.
    """
    named = {name: cfg for name, cfg in (heads or {}).items() if cfg is not None}
    if mask_head is not None and MASK in named:
        raise ConfigError(
            'model.mask_head is short for model.heads.mask, and both are given; '
            'remove one of them (mask_head=None if it is inherited)'
        )
    if mask_head is not None:
        named = {MASK: mask_head, **named}
    wrong = [name for name in named if not name.isidentifier()]
    if wrong or not named:
        raise ConfigError(
            f'model.heads: {wrong[0]!r} is no name'
            if wrong
            else 'model.heads: give at least one head, e.g. '
            "heads=dict(mask=dict(type='SegTokenMaskHead'))"
        )
    return named


def head_attribute(name: str) -> str:
    """Module of a head in the model and in checkpoints, e.g. ``mask_head`` of ``mask``."""
    return f'{name}_head'


def module_name(part: str) -> str:
    """Module of a part as a config names it: ``heads.box.proj`` is ``box_head.proj``.

    Args:
        part: E.g. an entry of ``model.trainable``; other names stay as they are.
    """
    first, _, rest = part.partition('.')
    if first != 'heads' or not rest:
        return part
    name, _, inner = rest.partition('.')
    return head_attribute(name) + (f'.{inner}' if inner else '')
