"""Names of weights: the authors' release and ours. Pure renaming, shapes agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pixelsail_mm.errors import UserError

# (theirs, ours); the first rule that fits a key is used.
_RULES = (
    ('single_transformer.model.vis_embed.', 'backbone.patch_embed.'),
    ('single_transformer.model.vp_embed.', 'prompt_injector.proj.'),
    ('single_transformer.model.', 'backbone.llm.model.'),
    ('single_transformer.lm_head.', 'backbone.llm.lm_head.'),
    ('seg_token_projector.', 'mask_head.seg_projector.'),
    ('image_feature_projector.', 'mask_head.image_projector.'),
    ('image_feature_pre_projector.', 'neck.pre_projector.'),
)
_BLOCK_PARTS = {
    '0': 'upsample',
    '2.depthwise': 'depthwise',
    '2.pointwise': 'pointwise',
    '3.ln': 'norm',
}
_THEIR_BLOCK = re.compile(r'upsample_blocks\.(\d+)\.(0|2\.depthwise|2\.pointwise|3\.ln)\.(.+)')
_OUR_BLOCK = re.compile(r'neck\.blocks\.(\d+)\.(upsample|depthwise|pointwise|norm)\.(.+)')
EMBEDDING = 'backbone.llm.model.embed_tokens.weight'
LM_HEAD = 'backbone.llm.lm_head.weight'


class UnknownKeysError(UserError, ValueError):
    """Weights whose names belong to neither side.

    Args:
        keys: The names.
        model: What the checkpoint should be of.
    """

    def __init__(self, keys: list[str], model: str = 'Pixel-SAIL') -> None:
        self.keys = keys
        shown = ', '.join(keys[:8]) + (f', ... ({len(keys)} in all)' if len(keys) > 8 else '')
        super().__init__(
            f'unknown weights: {shown}; is this a checkpoint of {model}? Drop them '
            'with --ignore-unknown'
        )


def _to_ours(key: str) -> str | None:
    block = _THEIR_BLOCK.fullmatch(key)
    if block:
        return f'neck.blocks.{block[1]}.{_BLOCK_PARTS[block[2]]}.{block[3]}'
    for theirs, ours in _RULES:
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return None


def _to_theirs(key: str) -> str | None:
    block = _OUR_BLOCK.fullmatch(key)
    if block:
        part = next(name for name, ours in _BLOCK_PARTS.items() if ours == block[2])
        return f'upsample_blocks.{block[1]}.{part}.{block[3]}'
    for theirs, ours in _RULES:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    return None


def _rename(state: Mapping[str, Any], rename, ignore_unknown: bool) -> dict[str, Any]:
    renamed = {key: rename(key) for key in state}
    unknown = sorted(key for key, name in renamed.items() if name is None)
    if unknown and not ignore_unknown:
        raise UnknownKeysError(unknown)
    return {name: state[key] for key, name in renamed.items() if name is not None}


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
    return _rename(state, _to_ours, ignore_unknown)


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
    return _rename(state, _to_theirs, ignore_unknown)
