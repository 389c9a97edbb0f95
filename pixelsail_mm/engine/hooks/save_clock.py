"""Saving by time: all processes agree when a save is due."""

import time

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast

_LONGEST = 100


class SaveClock:
    """Tells when a save by time is due; process 0's clock decides for all.

    Process 0 also says after how many optimizer steps the others are to ask again: half of those
    that fit into the time that is left, at most 100. So the processes talk about ten times between
    two saves, not at every step.

    Args:
        minutes: Time between two saves.
    """

    def __init__(self, minutes: float):
        self._interval = minutes * 60
        self.restart()

    def restart(self) -> None:
        """Count from now on; all processes must call this at the same step."""
        self._saved = self._asked = time.monotonic()
        self._steps = self._left = 1

    def due(self) -> bool:
        """Tell whether to save now; all processes must call this after every optimizer step."""
        self._left -= 1
        if self._left > 0:
            return False
        now = time.monotonic()
        remaining = self._saved + self._interval - now
        per_step = max((now - self._asked) / self._steps, 1e-6)
        steps = 0 if remaining <= 0 else max(1, min(_LONGEST, int(remaining / 2 / per_step)))
        answer = torch.tensor([steps], device=get_device())
        broadcast(answer)
        self._asked, self._steps = now, max(int(answer), 1)
        self._left = self._steps
        return int(answer) == 0
