"""Warnings about an answer."""

from __future__ import annotations

from torch import Tensor

from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.tokenization import SEG_TOKEN


def describe_empty(masks: Tensor, text: str | None = None) -> list[str]:
    """List the masks of an answer that are empty although its text does not say so.

    Args:
        masks: bool ``(N, H, W)``; H = W = 0 without an image.
        text: The answer. A ``[SEG]`` of one of the answers ``no_target_answers``, such as ``No
            target [SEG].``, is meant to have an empty mask. None where the text is not known.
    """
    if 0 in masks.shape[1:]:
        count = len(masks) if text is None else text.count(SEG_TOKEN)
        return (
            [f'the answer has {count} {SEG_TOKEN}, but there is no image: it has no mask']
            if count
            else []
        )
    meant = _no_targets(text or '')
    hint = '' if text is not None else '; right if the answer says that there is no target'
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    return [
        f'mask {i} is empty: the answer has its {SEG_TOKEN}, but no pixel is marked for it{hint}'
        for i in empty
        if i not in meant
    ]


def _no_targets(text: str) -> set[int]:
    """Numbers of the ``[SEG]`` in front of which the text says that there is no target."""
    phrases = tuple(
        answer.partition(SEG_TOKEN)[0].strip().lower()
        for answer in load_templates('no_target_answers')
    )
    return {
        i
        for i, piece in enumerate(text.split(SEG_TOKEN)[:-1])
        if piece.strip().lower().endswith(phrases)
    }
