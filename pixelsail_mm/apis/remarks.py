"""What a user is told about an answer, besides the answer."""

from __future__ import annotations

import logging
from functools import lru_cache

from mmengine.logging import print_log
from torch import Tensor


@lru_cache(maxsize=4096)
def warn_once(text: str) -> None:
    """Log a warning, unless the same text was logged before.

    Args:
        text: What to say.
    """
    print_log(text, logger='current', level=logging.WARNING)


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
