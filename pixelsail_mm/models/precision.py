"""The precision in which a part of the model reads its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def as_weights_of(part: nn.Module, value: Tensor) -> Tensor:
    """``value`` in the precision of the part that reads it, e.g. behind a bfloat16 backbone.

    Autocast does this by itself and better; evaluation runs without it.

    Args:
        part: Module with weights of one precision, or without any.
        value: Any float tensor.
    """
    weight = next(part.parameters(), None)
    if weight is None or torch.is_autocast_enabled(value.device.type):
        return value
    return value.to(weight.dtype)
