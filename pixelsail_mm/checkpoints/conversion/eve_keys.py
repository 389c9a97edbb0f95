"""Weights of EVE-7B-HD-v2.0 under our names.

Written from the modules of EVEv2's public source code. The published file itself was not at hand:
names and shapes are checked against a model of that structure, not against the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixelsail_mm.checkpoints.conversion.official_keys import EMBEDDING, LM_HEAD, renamed
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.new_tokens import rows_around_others
from pixelsail_mm.tokenization import TASK_TOKENS, VISION_TOKENS, SpecialTokens

_PATCH_EMBEDDING = {
    'model.vision_tower.patch_embedding.0.': 'backbone.patch_embed.quarters.',
    'model.vision_tower.patch_embedding.2.': 'backbone.patch_embed.join.',
}
_ROUTED = re.compile(
    r'(model\.layers\.\d+\.(?:self_attn\.)?)(moe_)?'
    r'([qkvo]_proj|mlp|input_layernorm|post_attention_layernorm)\.(.+)'
)
_TABLES = {'model.embed_tokens.weight': EMBEDDING, 'lm_head.weight': LM_HEAD}
# Token whose row of the embedding a learned vector becomes; EVEv2's source changed their names.
_VECTORS = {
    'class_embedding': 'vision_class',
    'start_embedding': 'vision_class',
    'split_embedding': 'vision_row_end',
    'end_embedding': 'vision_row_end',
}
_VISION_TOWER = 'model.vision_tower.'


def _rename(key: str) -> str | None:
    for theirs, ours in _PATCH_EMBEDDING.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    routed = _ROUTED.fullmatch(key)
    if routed:
        layer, visual, part, rest = routed.groups()
        return f'backbone.llm.{layer}{part}.{"visual" if visual else "text"}.{rest}'
    if key == 'model.norm.weight':
        return 'backbone.llm.model.norm.weight'
    return _TABLES.get(key)


def eve_to_mm(
    state: Mapping[str, Tensor], tokenizer: Any, ignore_unknown: bool = False
) -> dict[str, Tensor]:
    """Rename the weights of an EVEv2 model to ours.

    Embedding and head get one row for each token of ``tokenizer``. Rows of Pixel-SAIL's tokens are
    drawn around the mean of the others, except for those of an image: ``<|vis_cls|>`` and
    ``<vrow_sep>`` are EVE's class and split embedding, ``<vpatch>`` is zero, since EVE's patches
    are their convolutions alone.

    Args:
        state: Their ``state_dict``.
        tokenizer: That of the converted model, made by
            :func:`~pixelsail_mm.tokenization.build_tokenizer` from EVE's.
        ignore_unknown: Leave unknown names out instead of raising.

    Returns:
        The part of our ``state_dict`` that an EVE model has: transformer and patch embedding.

    Raises:
        UnknownKeysError: A name belongs to no part of EVEv2.
        ConfigError: The embedding, the class or the split embedding is missing.
    """
    # Old transformers stored the frequencies of the rotary embedding.
    state = {key: value for key, value in state.items() if not key.endswith('rotary_emb.inv_freq')}
    vectors = {
        token: state.pop(_VISION_TOWER + name)
        for name, token in _VECTORS.items()
        if _VISION_TOWER + name in state
    }
    if len(vectors) < 2 or 'model.embed_tokens.weight' not in state:
        raise ConfigError(
            'the token, class or split embedding is missing; is this a checkpoint '
            'of EVEv2 (names such as model.vision_tower.split_embedding)?'
        )
    ours = renamed(state, _rename, ignore_unknown, 'EVEv2')
    tokens = SpecialTokens.from_tokenizer(tokenizer)
    new_ids = tokenizer.convert_tokens_to_ids([*VISION_TOKENS, *TASK_TOKENS])
    for name in {EMBEDDING, LM_HEAD} & ours.keys():
        ours[name] = _with_new_rows(ours[name], new_ids, tokens.vocab_size)
    ours[EMBEDDING][tokens.vpatch] = 0
    for token, vector in vectors.items():
        ours[EMBEDDING][getattr(tokens, token)] = vector.to(ours[EMBEDDING].dtype)
    return ours


def _with_new_rows(table: Tensor, new_ids: list[int], rows: int) -> Tensor:
    """Copy of ``table`` with ``rows`` rows, those of ``new_ids`` drawn around the others."""
    ids = sorted({*new_ids, *range(len(table), rows)})
    grown = table.new_zeros(rows, table.shape[1])
    kept = min(rows, len(table))
    grown[:kept] = table[:kept]
    grown[ids] = rows_around_others(grown, ids, torch.Generator().manual_seed(0))
    return grown
