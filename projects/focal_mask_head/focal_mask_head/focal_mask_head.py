"""Mask head that weighs hard pixels more."""

from __future__ import annotations

from pixelsail_mm.models.heads import SegTokenMaskHead
from pixelsail_mm.registry import MODELS


@MODELS.register_module()
class FocalMaskHead(SegTokenMaskHead):
    """``SegTokenMaskHead`` with the focal loss (arXiv 1708.02002) in place of cross entropy.

    Args:
        gamma: Focusing parameter; 0 gives weighted cross entropy.
        alpha: Weight of object pixels, background gets ``1 - alpha``.
        focal_weight: Weight of the loss.
        **kwargs: See ``SegTokenMaskHead``.
    """

    def __init__(
        self, *args, gamma: float = 2.0, alpha: float = 0.25, focal_weight: float = 20.0, **kwargs
    ) -> None:
        kwargs['loss_mask'] = dict(
            type='FocalLoss', use_sigmoid=True, gamma=gamma, alpha=alpha, loss_weight=focal_weight
        )
        super().__init__(*args, **kwargs)
