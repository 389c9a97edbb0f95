"""Image-block attention for stock Hugging Face decoders, without a dense mask.

Pixel-SAIL attends causally, and fully among everything from ``<vision>`` to ``</vision>``
(Pixel-SAIL paper, section 3; behaviour of the authors' release), unless the backbone reads images
causally, like text. Per sample that is three runs of
queries - text before the image, the image block, text after it - each of which is one
scaled-dot-product call over a contiguous range of keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelsail_mm.errors import ConfigError

# Without "sdpa": Transformers 5 would refuse it where a family's own code does not support that.
ATTENTION_NAME = 'pixelsail_image_blocks'


class AttentionLayout:
    """Where the valid tokens and the image block of each row of a batch are.

    Args:
        spans: Per row ``(start, image_start, image_end)``: index of the first valid token (0
            unless the row is padded on the left), of ``<vision>``, and one past ``</vision>``.
            Rows without an image have ``image_start == image_end == start``.
        length: Padded length L of the batch.
        device: Device of the row indices.
        turn_ids: ``(B,L)`` int64, for conversations whose turns are independent: 0 on what all
            turns share (the image block), n >= 1 on the n-th turn, which sees the shared part and
            itself only. None: each turn sees all earlier ones.
        causal_images: Image tokens do not see later ones either (EVEv2).

    Attributes:
        image_spans: The given spans.
        spans: Those of full attention: the same, or without any image block.

    Padding on the right needs no entry: being behind every valid token, it is never attended to.
    """

    def __init__(
        self,
        spans: Sequence[tuple[int, int, int]],
        length: int,
        device: torch.device | str = 'cpu',
        turn_ids: Tensor | None = None,
        causal_images: bool = False,
    ) -> None:
        self.image_spans = [tuple(span) for span in spans]
        self.spans = self.image_spans
        if causal_images:
            self.spans = [(start, start, start) for start, _, _ in self.image_spans]
        self.length = length
        self.device = torch.device(device)
        self.turn_ids = turn_ids
        rows_of = defaultdict(list)
        for row, span in enumerate(self.spans):
            rows_of[span].append(row)
        self.groups = [(span, torch.tensor(rows, device=device)) for span, rows in rows_of.items()]
        order = torch.cat([rows for _, rows in self.groups])
        self.restore = torch.argsort(order)
        self._masks: dict[tuple, Tensor] = {}
        self._cache_mask: Tensor | None = None

    def trailing_mask(
        self, span: tuple[int, int, int], num_queries: int, num_keys: int, dense: bool = False
    ):
        """Mask of the last ``num_queries`` of ``num_keys`` positions of the rows with ``span``.

        Causal: a lazy bias on GPUs (the fused kernels never materialise it); on the CPU, or if
        ``dense``, a boolean ``(num_queries, num_keys)`` tensor shared by all layers and rows. With
        independent turns ``(rows,1,num_queries,num_keys)``.
        """
        if self.turn_ids is not None:
            return self._turn_mask(span, num_queries, num_keys)
        if self.device.type == 'cuda' and not dense:
            from torch.nn.attention.bias import causal_lower_right  # imports torch._dynamo

            return causal_lower_right(num_queries, num_keys)
        key = (num_queries, num_keys)
        if key not in self._masks:
            ones = torch.ones(key, dtype=torch.bool, device=self.device)
            self._masks[key] = ones.tril(diagonal=num_keys - num_queries)
        return self._masks[key]

    def _turn_mask(self, span: tuple[int, int, int], num_queries: int, num_keys: int) -> Tensor:
        if span not in self._masks:
            rows = next(rows for other, rows in self.groups if other == span)
            turns = self.turn_ids[rows][:, span[0] :]
            queries = turns[:, -num_queries:, None]
            causal = torch.ones(num_queries, num_keys, dtype=torch.bool, device=self.device).tril(
                num_keys - num_queries
            )
            visible = (queries == turns[:, None]) | (turns[:, None] == 0)
            self._masks[span] = (visible & causal)[:, None]
        return self._masks[span]

    def cached_key_mask(self, num_keys: int) -> Tensor | None:
        """Valid keys while decoding with a cache: ``(B,1,1,num_keys)``, None if all are."""
        starts = [span[0] for span in self.spans]
        if not any(starts):
            return None
        if self._cache_mask is None or self._cache_mask.shape[-1] != num_keys:
            keys = torch.arange(num_keys, device=self.device)
            self._cache_mask = keys >= torch.tensor(starts, device=self.device)[:, None]
            self._cache_mask = self._cache_mask[:, None, None]
        return self._cache_mask


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask=None,
    is_causal: bool = False,
    softcap: float | None = None,
    **options,
) -> Tensor:
    """Attention ``(B,H,Lq,D)``; with ``softcap`` of scores ``softcap * tanh(score / softcap)``.

    No fused kernel of PyTorch caps scores: they then take ``(B,H,Lq,Lk)`` of memory.
    """
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, is_causal=is_causal, **options
        )
    scale = options['scale'] or query.shape[-1] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, options['dropout_p']) @ value


def _attend_span(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: tuple[int, int, int],
    layout: AttentionLayout,
    **kwargs,
) -> Tensor:
    """Attention of rows that share one span. All tensors ``(B,H,L,D)``."""
    start, image_start, image_end = span
    length = query.shape[2]
    parts = []
    if start:
        parts.append(query.new_zeros(*query.shape[:2], start, value.shape[-1]))
    if image_start > start:
        run = slice(start, image_start)
        parts.append(
            _attend(query[:, :, run], key[:, :, run], value[:, :, run], is_causal=True, **kwargs)
        )
    if image_end > image_start:
        keys = slice(start, image_end)
        parts.append(
            _attend(
                query[:, :, image_start:image_end], key[:, :, keys], value[:, :, keys], **kwargs
            )
        )
    if length > image_end:
        queries, keys = query[:, :, image_end:], key[:, :, start:]
        if image_end == start and layout.turn_ids is None:
            mask = dict(is_causal=True)
        else:
            mask = dict(
                attn_mask=layout.trailing_mask(
                    span, queries.shape[2], keys.shape[2], dense=kwargs.get('softcap') is not None
                )
            )
        parts.append(_attend(queries, keys, value[:, :, start:], **mask, **kwargs))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _leaves_window(query: Tensor, key: Tensor, window: int, layout: AttentionLayout | None) -> bool:
    """Whether a sequence is too long for the sliding window.

    A full cache drops its first keys from here on. What is left is right for a row that begins at
    the first key; where the left padding of others would then end is not known.
    """
    if key.shape[2] > window:
        return True
    decodes, padded = (
        query.shape[2] < key.shape[2],
        layout is not None and any(start for start, _, _ in layout.spans),
    )
    return decodes and padded and key.shape[2] == window


def image_block_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask=None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: AttentionLayout | None = None,
    **kwargs,
):
    """Attention function in the form of transformers' ``AttentionInterface``.

    Args:
        module: The attention module that calls.
        query: ``(B,H,Lq,D)``.
        key: ``(B,H_kv,Lk,D)``; ``Lk > Lq`` means decoding with a cache.
        value: As ``key``.
        attention_mask: Not used: the structure is in ``layout``.
        scaling: Factor of the logits.
        dropout: Attention dropout probability.
        sliding_window: Window of the base model; must not be shorter than the sequence.
        softcap: Bound of the logits (Gemma 2), None for none.
        layout: Spans of the batch; None means plain causal attention.
        **kwargs: What decoders pass to other attention functions; not used. A family that needs
            any of it is refused when the model is built
            (:mod:`~pixelsail_mm.models.backbones.family_check`).

    Returns:
        Output ``(B,Lq,H,D)`` and None (no attention weights).

    Raises:
        ConfigError: The sequence exceeds the sliding window, which image blocks do not support, or
            fills it while rows of different lengths are continued.
    """
    if sliding_window is not None and _leaves_window(query, key, sliding_window, layout):
        raise ConfigError(
            f"sequence of {key.shape[2]} tokens exceeds the base model's sliding window of "
            f'{sliding_window}; set sliding_window=None in backbone.llm or shorten max_length'
        )
    groups = query.shape[1] // key.shape[1]
    options = dict(scale=scaling, dropout_p=dropout, softcap=softcap)
    if query.is_cuda and softcap is None:
        options['enable_gqa'] = groups > 1
    elif groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    if query.shape[2] < key.shape[2]:
        mask = layout.cached_key_mask(key.shape[2]) if layout is not None else None
        out = _attend(query, key, value, attn_mask=mask, **options)
    elif layout is None:
        out = _attend(query, key, value, is_causal=True, **options)
    elif len(layout.groups) == 1:
        out = _attend_span(query, key, value, layout.groups[0][0], layout, **options)
    else:
        out = torch.cat(
            [
                _attend_span(query[rows], key[rows], value[rows], span, layout, **options)
                for span, rows in layout.groups
            ]
        )[layout.restore]
    return out.transpose(1, 2), None


@cache
def registered_attention() -> str:
    """Register :func:`image_block_attention` in Transformers and return its name there."""
    from transformers import AttentionInterface  # imports torch._dynamo

    AttentionInterface.register(ATTENTION_NAME, image_block_attention)
    return ATTENTION_NAME
