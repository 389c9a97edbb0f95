"""Names of weights: the authors' release and ours. Pure renaming, shapes agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pixelsail_mm.errors import UserError, shortened

# (theirs, ours); the first rule that fits a key is used, {} is a number.
_RULES = (
    ('single_transformer.model.vis_embed.', 'backbone.patch_embed.'),
    ('single_transformer.model.vp_embed.', 'prompt_injector.proj.'),
    ('single_transformer.model.', 'backbone.llm.model.'),
    ('single_transformer.lm_head.', 'backbone.llm.lm_head.'),
    ('seg_token_projector.', 'mask_head.seg_projector.'),
    ('image_feature_projector.', 'mask_head.image_projector.'),
    ('image_feature_pre_projector.', 'neck.pre_projector.'),
    ('upsample_blocks.{}.0.', 'neck.blocks.{}.upsample.'),
    ('upsample_blocks.{}.2.depthwise.', 'neck.blocks.{}.depthwise.'),
    ('upsample_blocks.{}.2.pointwise.', 'neck.blocks.{}.pointwise.'),
    ('upsample_blocks.{}.3.ln.', 'neck.blocks.{}.norm.'),
)
EMBEDDING = 'backbone.llm.model.embed_tokens.weight'
LM_HEAD = 'backbone.llm.lm_head.weight'


class UnknownKeysError(UserError, ValueError):
    """Weights whose names belong to neither side."""

    def __init__(self, keys: list[str], model: str = 'Pixel-SAIL') -> None:
        self.keys = keys
        super().__init__(
            f'unknown weights: {shortened(keys, 8)}; is this a checkpoint of {model}? Drop them '
            'with --ignore-unknown'
        )


def _by_rules(key: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for before, after in rules:
        found = re.match(re.escape(before).replace(r'\{\}', r'(\d+)'), key)
        if found:
            return after.format(*found.groups()) + key[found.end() :]
    return None


def renamed(
    state: Mapping[str, Any],
    rename: Callable[[str], str | None],
    ignore_unknown: bool,
    model: str = 'Pixel-SAIL',
) -> dict[str, Any]:
    """The same weights under other names.

    Args:
        state: Name -> weight.
        rename: Gives a new name; None for one that belongs to neither side.
        ignore_unknown: Leave unknown names out instead of raising.
        model: What the checkpoint should be of.

    Raises:
        UnknownKeysError: A name belongs to neither side.
    """
    names = {key: rename(key) for key in state}
    unknown = sorted(key for key, name in names.items() if name is None)
    if unknown and not ignore_unknown:
        raise UnknownKeysError(unknown, model)
    return {name: state[key] for key, name in names.items() if name is not None}


def official_to_mm(state: Mapping[str, Any], ignore_unknown: bool = False) -> dict[str, Any]:
    """Rename the authors' weights to ours.

    Args:
        state: Their ``state_dict``.
        ignore_unknown: Leave unknown names out instead of raising.

    Returns:
        Our ``state_dict``, the same tensors.

    Raises:
        UnknownKeysError: A name belongs to neither side.
    """
    return renamed(state, lambda key: _by_rules(key, _RULES), ignore_unknown)


def mm_to_official(
    state: Mapping[str, Any], ignore_unknown: bool = False, duplicate_tied: bool = True
) -> dict[str, Any]:
    """Rename our weights to the authors'.

    ``distill.*`` is left out: the authors never save it.

    Args:
        state: Our ``state_dict``.
        ignore_unknown: Leave unknown names out instead of raising.
        duplicate_tied: Store tied embeddings under both names, as their files do.

    Returns:
        Their ``state_dict``, the same tensors.

    Raises:
        UnknownKeysError: A name belongs to neither side.
    """
    state = {key: value for key, value in state.items() if not key.startswith('distill.')}
    if duplicate_tied and EMBEDDING in state and LM_HEAD not in state:
        state[LM_HEAD] = state[EMBEDDING]
    rules = [(ours, theirs) for theirs, ours in _RULES]
    return renamed(state, lambda key: _by_rules(key, rules), ignore_unknown)
