"""Dense reference of the block attention, for tests."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_mask(span: tuple[int, int, int], length: int) -> Tensor:
    """Boolean ``(length, length)`` mask, True = may attend.

    Args:
        span: ``(start, image_start, image_end)`` as in
            :class:`~pixelsail_mm.models.backbones.attention.AttentionLayout`.
        length: Number of positions.
    """
    start, image_start, image_end = span
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[image_start:image_end, image_start:image_end] = True
    mask[:, :start] = False
    mask[:start] = False
    return mask
