"""How much of the image a ``[SEG]`` means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelsail_mm.models.heads import SegTokenHead
from pixelsail_mm.models.necks.feature_maps import apply_per_pixel
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample


@MODELS.register_module()
class AreaHead(SegTokenHead):
    """The share of the image that each ``[SEG]`` covers, from its state alone.

    Learns from ``gt_masks``, writes ``pred_areas``: float32 ``(n,)``, 0 to 1.

    Args:
        in_channels: Channels of the neck's maps, not used; filled in by the meta-architecture.
        hidden_size: Channels C of the transformer; filled in by the meta-architecture.
        loss_area: Config of the loss, one of MMDetection's.
        init_cfg: MMEngine initialisation config.
    """

    targets = ('gt_masks',)
    losses = ('loss_area',)

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        loss_area: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1)
        )
        self.loss_area = MODELS.build(loss_area or dict(type='L1Loss', loss_weight=2.0))

    def forward(self, states: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        """Areas ``(n,)`` per image, see ``SegTokenHead``."""
        return [area.squeeze(1).sigmoid() for area in apply_per_pixel(self.layers, states)]

    def loss(
        self, states: list[Tensor], maps: list[Tensor], samples: Sequence[PixelDataSample]
    ) -> dict[str, Tensor]:
        """Losses of a batch, see ``SegTokenHead``."""
        areas = torch.cat(self(states, maps)).float()
        truth = torch.cat([sample.gt_masks.float().mean((1, 2)) for sample in samples])
        return dict(loss_area=self.loss_area(areas, truth))

    def predict(self, states: Tensor, image_map: Tensor | None, sample: PixelDataSample) -> None:
        """Write ``pred_areas``, see ``SegTokenHead``."""
        (areas,) = self([states], [image_map])
        sample.pred_areas = areas.float()
