"""Answering: generation of text, and masks from the ``[SEG]`` states it passes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixelsail_mm.models.backbones.attention import AttentionLayout

if TYPE_CHECKING:
    from pixelsail_mm.models.pixel_sail import PixelSAIL


def left_pad(tensor: Tensor, lengths: list[int]) -> Tensor:
    """Move the right padding of ``(B,L,...)`` rows to the left."""
    length = tensor.shape[1]
    return torch.stack([row.roll(length - valid, dims=0) for row, valid in zip(tensor, lengths)])


def generate_answers(model: PixelSAIL, inputs: dict, data_samples: list, options: dict) -> list:
    """Generate answers for prompts of any lengths and write predictions into the samples.

    The prompt is encoded once with the attention of training, then tokens follow causally with a
    cache, which equals one pass with the training layout.

    Args:
        model: The meta-architecture, in eval mode.
        inputs: Batch of the data preprocessor. Labels other than -100 mark a forced answer prefix;
            its ``[SEG]`` tokens give masks like generated ones. ``[SEG]`` in questions and in
            earlier turns does not.
        data_samples: One per row; receive ``pred_text`` (with the forced prefix), ``pred_masks``
            bool ``(n,H,W)``, ``pred_scores`` ``(n,)`` and ``pred_token_ids`` (new tokens).
        options: Keywords of Hugging Face's ``generate``; ``max_new_tokens`` at least 1. A list
            ``eos_token_id`` replaces ``<|endoftext|>`` and ``<|im_end|>``, which end an answer.

    Returns:
        The data samples.
    """
    lengths = inputs['lengths']
    batch_length = inputs['input_ids'].shape[1]
    embeds = left_pad(model.embed(inputs), lengths)
    positions = torch.stack([left_pad(axis, lengths) for axis in inputs['position_ids']])
    spans = []
    for length, span in zip(lengths, inputs['image_spans']):
        pad = batch_length - length
        start, end = span or (0, 0)
        spans.append((pad, pad + start, pad + end))
    layout = AttentionLayout(spans, batch_length, embeds.device,
                             causal_images=model.causal_images)
    options = dict(eos_token_id=_stop_ids(model), pad_token_id=model.tokens.pad) | options
    stops = options['eos_token_id']
    new_ids, states = model.backbone.generate(embeds, positions, layout, **options)
    prompt_states = torch.stack([
        row.roll(length - batch_length, dims=0) for row, length in zip(states[0], lengths)])
    new_states = torch.cat(states[1:], dim=1)
    features = model.image_features(model.patch_maps(prompt_states, inputs))
    for row, sample in enumerate(data_samples):
        answer = _until_stop(new_ids[row], stops)
        forced = inputs['labels'][row] != -100
        ids = torch.cat([inputs['input_ids'][row][forced], answer])
        hidden = torch.cat([prompt_states[row][forced], new_states[row, :len(answer)]])
        _write_prediction(model, sample, ids, hidden, features[row], stops)
        sample.pred_token_ids = answer
    return data_samples


def _write_prediction(model: PixelSAIL, sample, ids: Tensor, states: Tensor,
                      feature: Tensor | None, stops: list[int]) -> None:
    """Fill one sample from its answer ``ids`` ``(T,)`` and their states ``(T,C)``."""
    text_ids = [token for token in ids.tolist() if token not in stops]
    sample.pred_text = model.tokenizer.decode(
        text_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
    ori_shape = sample.get('ori_shape')
    if feature is None or ori_shape is None:
        sample.pred_masks = torch.zeros((0, *(ori_shape or (0, 0))), dtype=torch.bool)
        sample.pred_scores = torch.zeros(0)
        return
    segs = model.seg_embeddings(states[ids == model.tokens.seg])
    logits = model.mask_head.mask_logits(segs, feature)
    sample.pred_masks, sample.pred_scores = model.mask_head.predict(logits, ori_shape)


def _stop_ids(model: PixelSAIL) -> list[int]:
    im_end = model.tokenizer.convert_tokens_to_ids('<|im_end|>')
    return sorted({model.tokens.eos, im_end})


def _until_stop(ids: Tensor, stops: list[int]) -> Tensor:
    """Ids up to and including the first stop token; what follows is padding of the batch."""
    hits = torch.nonzero(torch.isin(ids, torch.tensor(stops, device=ids.device)))
    return ids[:int(hits[0]) + 1] if len(hits) else ids
