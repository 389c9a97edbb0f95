"""Passes of a stock Hugging Face decoder over sequences with image blocks.

:class:`~pixelsail_mm.models.backbones.single_transformer.SingleTransformer` and the check of its
family (:mod:`~pixelsail_mm.models.backbones.family_check`) run the same functions.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.attention import AttentionLayout
from pixelsail_mm.models.backbones.generation_settings import check_generation
from pixelsail_mm.models.backbones.rotary import PatchRotaryEmbedding

ROTARY = 'rotary_emb'
# What generation hands from step to step: Transformers 5 calls the cache `cache` and counts itself.
_STEP_STATE = ('cache', 'past_key_values', 'cache_position')


def replace_rotary(llm: nn.Module, layout: str = 'sections') -> None:
    """Give a decoder rotary embeddings that follow rows and columns, in place.

    Args:
        llm: Decoder with ``model.rotary_emb``; Gemma 3 has a second one for its local layers.
        layout: See :class:`~pixelsail_mm.models.backbones.rotary.PatchRotaryEmbedding`.

    Raises:
        ConfigError: The decoder has no such module, or one of another form. Says what, not where:
            :func:`~pixelsail_mm.models.backbones.family_check.check_family` completes it.
    """
    decoder = getattr(llm, 'model', None)
    if not isinstance(getattr(decoder, ROTARY, None), nn.Module):
        raise ConfigError(f'it has no rotary embedding at model.{ROTARY}')
    for name, module in list(decoder.named_children()):
        if name.startswith(ROTARY):
            setattr(decoder, name, PatchRotaryEmbedding(module, layout))


def final_states(
    llm: nn.Module, inputs_embeds: Tensor, position_ids: Tensor, layout: AttentionLayout
) -> Tensor:
    """Hidden states ``(B,L,C)`` after the final norm.

    Args:
        llm: Decoder after :func:`replace_rotary`.
        inputs_embeds: ``(B,L,C)``.
        position_ids: ``(3,B,L)`` int64.
        layout: Image spans of the batch.
    """
    return llm.model(
        inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False, layout=layout
    ).last_hidden_state


def vocabulary_logits(llm: nn.Module, states: Tensor) -> Tensor:
    """Vocabulary logits ``(...,V)`` of final states ``(...,C)``, by the family's rule.

    A family's ``forward`` may scale or cap what its head gives, but gives logits of whole
    sequences only; the rules here are those of transformers: ``logit_scale`` (Cohere),
    ``logits_scaling`` (Granite), ``final_logit_softcapping`` (Gemma 2).
    """
    logits = llm.lm_head(states)
    config = llm.config
    if getattr(config, 'logit_scale', None) is not None:
        logits = logits * config.logit_scale
    if getattr(config, 'logits_scaling', None) is not None:
        logits = logits / config.logits_scaling
    if getattr(config, 'final_logit_softcapping', None) is not None:
        cap = config.final_logit_softcapping
        logits = cap * torch.tanh(logits / cap)
    return logits


@torch.no_grad()
def generate(
    llm: nn.Module,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    layout: AttentionLayout,
    **generation,
) -> tuple[Tensor, list[Tensor]]:
    """Continue left-padded prompts with Hugging Face's ``generate``.

    Args:
        llm: Decoder after :func:`replace_rotary`.
        inputs_embeds: ``(B,L,C)``, padded on the left.
        position_ids: ``(3,B,L)``; the next token of a row gets the last position plus one.
        layout: Spans with the left padding as ``start``.
        **generation: ``max_new_tokens``, ``eos_token_id``, ``do_sample``, logits processors,
            streamers, ... of ``GenerationMixin.generate``.

    Returns:
        New ids ``(B,T)`` and the final states: ``(B,L,C)`` of the prompt, then one ``(B,1,C)``
        for each new token, the last one included.

    Raises:
        ConfigError: See
            :func:`~pixelsail_mm.models.backbones.generation_settings.check_generation`.
    """
    overrides = dict(generation)
    base = overrides.pop('generation_config', None) or llm.generation_config
    check_generation(base, **overrides)
    states: list[Tensor] = []
    # Some families' own `forward` (FlexOlmo) passes no further keywords on to their inner model.
    hooks = [
        llm.model.register_forward_pre_hook(
            lambda module, args, keywords: (args, keywords | dict(layout=layout)), with_kwargs=True
        ),
        llm.model.register_forward_hook(
            lambda module, args, output: states.append(output.last_hidden_state)
        ),
    ]
    valid = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    for row, (start, _, _) in enumerate(layout.spans):
        valid[row, :start] = 0
    try:
        with _patch_positions(llm, position_ids) as state:
            output = llm.generate(
                inputs_embeds=inputs_embeds,
                attention_mask=valid,
                return_dict_in_generate=True,
                **generation,
            )
        # The last new token was never fed back; its state is needed when it is [SEG].
        step = output.sequences.shape[1] - 1
        if 'cache_position' in state:
            length = inputs_embeds.shape[1] + step
            state['cache_position'] = torch.tensor([length], device=valid.device)
        llm.model(
            input_ids=output.sequences[:, -1:],
            use_cache=True,
            position_ids=_next_positions(position_ids, step),
            **state,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return output.sequences, states


@contextmanager
def _patch_positions(llm: nn.Module, position_ids: Tensor):
    """Let ``generate`` use three-axis positions instead of counting attention-mask ones.

    Yields:
        What the last step was given of :data:`_STEP_STATE`.
    """

    state: dict[str, Any] = {}

    def prepare(input_ids, inputs_embeds=None, attention_mask=None, use_cache=True, **kwargs):
        state.update({key: kwargs[key] for key in _STEP_STATE if key in kwargs})
        step = input_ids.shape[1]
        if step == 0:
            inputs = dict(inputs_embeds=inputs_embeds, position_ids=position_ids)
        else:
            inputs = dict(
                input_ids=input_ids[:, -1:], position_ids=_next_positions(position_ids, step - 1)
            )
        return dict(inputs, use_cache=use_cache, **state)

    llm.prepare_inputs_for_generation = prepare
    try:
        yield state
    finally:
        del llm.prepare_inputs_for_generation


def _next_positions(position_ids: Tensor, step: int) -> Tensor:
    """Positions ``(3,B,1)`` of the ``step``-th new token behind prompts ``(3,B,L)``."""
    last = position_ids[:, :, -1:].amax(dim=0, keepdim=True)
    return (last + 1 + step).expand(3, -1, -1)
