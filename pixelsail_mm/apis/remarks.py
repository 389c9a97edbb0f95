"""What a user is told about an answer, besides the answer."""

from __future__ import annotations

from torch import Tensor


def describe_empty(masks: Tensor) -> list[str]:
    """Say which of an answer's masks are empty.

    Args:
        masks: bool ``(N, H, W)``; none of them is called empty without an image (H = W = 0).
    """
    if not masks.numel():
        return []
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    return [f'mask {i} is empty: the answer has its [SEG], but no pixel is marked for it'
            for i in empty]
