"""Base class of vision experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

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

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """All that the feature maps of an image depend on, for caches of them.

        Two experts with equal fingerprints give equal maps up to rounding; paths, devices and the
        name of a folder are no part of it.

        Returns:
            JSON-able dict with exactly these keys:

            * ``expert``: name of the registered type;
            * ``weights_sha256``: :func:`~.fingerprint.weights_sha256` of the files that the
              weights were read from, or :func:`~.fingerprint.tensors_sha256` of random weights;
            * ``feature``: which map of the model it is, a name or a dict of settings;
            * ``preprocessing``: dict of what is done to the image before (size, mean, ...).
        """

    @classmethod
    def fingerprint_of(cls, **settings: Any) -> dict[str, Any]:
        """Compute the :meth:`fingerprint` of an expert from its config, without building it.

        A training from a cache compares it with what the cache says, so it must neither put
        weights into memory nor need a network.

        Args:
            **settings: Arguments of the class, as in a config.

        Returns:
            The same keys. None, also inside of ``preprocessing``, stands for what cannot be told
            here, e.g. ``weights_sha256`` of random weights or of files that are on another
            machine; it is not compared. By default only the type is told.
        """
        return dict(expert=cls.__name__, weights_sha256=None, feature=None, preprocessing=None)


def has_image(sample: PixelDataSample) -> bool:
    """Tell whether a sample has an image, from a file or from memory."""
    return (
        sample.get('img_path') is not None
        or sample.get('image') is not None
        or any(sample.get('ori_shape') or ())
    )
