"""What every vision expert has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Sequence

import torch
from torch import Tensor

from pixelsail_mm.structures import PixelDataSample


class VisionExpert(ABC):
    """A frozen teacher: image -> dense feature map.

    Experts are not modules: they never enter a ``state_dict``, get no gradient and are not touched
    by ``train()`` (Pixel-SAIL paper, section 3: used during training only).
    """

    @abstractmethod
    def __call__(self, data_samples: Sequence[PixelDataSample]) -> list[Tensor | None]:
        """Feature maps ``(C,h,w)`` float32, one per sample; None where there is no image."""

    def to(self, device: torch.device) -> VisionExpert:
        """Follow the trained model to its device; nothing to do for experts without weights."""
        return self


def has_image(sample: PixelDataSample) -> bool:
    """Whether a sample shows an image; it may come from a file or from memory."""
    return (sample.get('img_path') is not None or sample.get('image') is not None
            or any(sample.get('ori_shape') or ()))
