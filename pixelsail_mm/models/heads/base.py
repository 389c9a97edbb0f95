"""Base class of heads on ``[SEG]`` states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor

from pixelsail_mm.models.every_rank import zero_of
from pixelsail_mm.structures import PixelDataSample


class SegTokenHead(BaseModule):
    """Base class of heads: each ``[SEG]`` state and the image's map give one prediction.

    ``model.heads = dict(NAME=dict(type=...), ...)`` builds any number of them. A subclass names
    what it learns from (:attr:`targets`), what its losses are called (:attr:`losses`) and
    implements :meth:`forward`, :meth:`loss` and :meth:`predict`. The meta-architecture does the
    rest: it fills in ``in_channels`` and ``hidden_size``, leaves out samples without the targets,
    and casts states and maps to the precision of the head.

    Call each submodule **once per batch**, whatever the number of images (the helper for lists is
    :func:`~pixelsail_mm.models.necks.feature_maps.apply_per_pixel`): under ZeRO-3 every process
    must call every module equally often.

    Shapes: C channels of a ``[SEG]`` state, ``(H, W)`` cells of an image's map, n ``[SEG]`` tokens
    of an image. Numbers differ from image to image.
    """

    #: Fields of a data sample that :meth:`loss` needs, with one entry for each ``[SEG]``. Samples
    #: that lack one of them, or hold another number of entries, are not given to :meth:`loss`.
    targets: tuple[str, ...] = ()
    #: Names of the losses of :meth:`loss`, each of which begins with ``loss``.
    losses: tuple[str, ...] = ('loss',)

    def project_images(self, maps: list[Tensor]) -> list[Tensor]:
        """Prepare the neck's maps; done once per batch. Here they stay as they are.

        Args:
            maps: ``(H,W,in_channels)`` per image; at least one.

        Returns:
            Maps ``(H,W,D)``, which :meth:`forward`, :meth:`loss` and :meth:`predict` get.
        """
        return maps

    @abstractmethod
    def forward(self, states: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        """Compute the raw outputs, with gradient.

        Args:
            states: Final states of the ``[SEG]`` tokens, ``(n,C)`` per image.
            maps: ``(H,W,D)`` per image.

        Returns:
            One tensor per image, whose first axis has length n.
        """

    @abstractmethod
    def loss(
        self, states: list[Tensor], maps: list[Tensor], samples: Sequence[PixelDataSample]
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            states: As in :meth:`forward`; at least one image, each with n >= 1.
            maps: As in :meth:`forward`.
            samples: Data sample of each image, which has all :attr:`targets`.

        Returns:
            A scalar for each of :attr:`losses`, weighted.
        """

    @abstractmethod
    def predict(self, states: Tensor, image_map: Tensor | None, sample: PixelDataSample) -> None:
        """Write the predictions of one answer into its sample.

        Each head has ``pred_*`` fields of its own, with one entry for each ``[SEG]``; write them
        for n = 0 too. All of them reach metrics, the inferencer, ``generate`` of an exported
        folder, and the files of a resumable evaluation.

        Args:
            states: ``(n,C)``; n is 0 for an answer without ``[SEG]``.
            image_map: ``(H,W,D)``; None without an image, then n is 0.
            sample: Its ``ori_shape`` is the ``(H,W)`` of the original image in pixels, where there
                is one.
        """

    def no_loss(self, states: list[Tensor], maps: list[Tensor]) -> dict[str, Tensor]:
        """Give losses of zero for a batch without targets, from stand-ins; see :func:`zero_of`."""
        zero = zero_of(*self(states, maps))
        return dict.fromkeys(self.losses, zero)
