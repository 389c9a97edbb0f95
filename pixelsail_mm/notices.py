"""What a user is told once, however often it happens."""

from __future__ import annotations

import logging
from functools import lru_cache

from mmengine.logging import print_log


@lru_cache(maxsize=4096)
def warn_once(text: str) -> None:
    """Log a warning, unless this process logged the same text before.

    Args:
        text: What to say.
    """
    print_log(text, logger='current', level=logging.WARNING)
