"""A box for each ``[SEG]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from pixelsail_mm.models.heads import SegTokenHead
from pixelsail_mm.models.necks.feature_maps import apply_per_pixel
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample


@MODELS.register_module()
class SegTokenBoxHead(SegTokenHead):
    """Boxes from where a ``[SEG]`` state looks in the image.

    The state is compared with every cell of the image's map; the softmax of these products says
    where it looks. Mean and spread of the places looked at, the features found there and the state
    itself go through two layers, whose output corrects the box that mean and spread alone give.
    Losses are MMDetection's L1 and GIoU, on centre and size as shares of the image, and on corners.

    Learns from ``gt_boxes``, writes ``pred_boxes``: float32 ``(n,4)``, x1, y1, x2, y2 in pixels of
    the original image.

    Args:
        in_channels: Channels of the neck's maps; filled in by the meta-architecture.
        hidden_size: Channels C of the transformer; filled in by the meta-architecture.
        embed_channels: Width S of the space in which states and cells are compared.
        loss_l1: Config of the loss on centre and size.
        loss_giou: Config of the loss on corners.
        init_cfg: MMEngine initialisation config.
    """

    targets = ('gt_boxes',)
    losses = ('loss_l1', 'loss_giou')

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        embed_channels: int = 128,
        loss_l1: dict | None = None,
        loss_giou: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.image_proj = nn.Linear(in_channels, embed_channels)
        self.seg_proj = nn.Linear(hidden_size, embed_channels)
        self.correct = nn.Sequential(
            nn.Linear(2 * embed_channels + 4, embed_channels),
            nn.ReLU(),
            nn.Linear(embed_channels, 4),
        )
        self.loss_l1 = MODELS.build(loss_l1 or dict(type='L1Loss', loss_weight=5.0))
        self.loss_giou = MODELS.build(loss_giou or dict(type='GIoULoss', loss_weight=2.0))

    def project_images(self, maps: list[Tensor]) -> list[Tensor]:
        """Cells ``(H,W,S)``, see ``SegTokenHead``."""
        return apply_per_pixel(self.image_proj, maps)

    def forward(self, states: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        """Boxes ``(n,4)`` per image: centre x, y, width, height as shares of the image."""
        queries = apply_per_pixel(self.seg_proj, states)
        looks = [_look(query, image) for query, image in zip(queries, maps)]
        found = [torch.cat([query, *look], dim=1) for query, look in zip(queries, looks)]
        changes = apply_per_pixel(self.correct, found)
        # A uniform box of width w has a spread of w / sqrt(12).
        return [
            torch.cat([look[1][:, :2], look[1][:, 2:] * 12**0.5], dim=1)
            .clamp(1e-3, 1 - 1e-3)
            .logit()
            .add(change)
            .sigmoid()
            for look, change in zip(looks, changes)
        ]

    def loss(
        self, states: list[Tensor], maps: list[Tensor], samples: Sequence[PixelDataSample]
    ) -> dict[str, Tensor]:
        """Losses of a batch, see ``SegTokenHead``; boxes of no size (no target) are left out."""
        boxes = torch.cat(self(states, maps)).float()
        truth = torch.cat(
            [sample.gt_boxes / sample.gt_boxes.new_tensor(_scale(sample)) for sample in samples]
        ).to(boxes)
        there = (truth[:, 2:] > truth[:, :2]).all(1)
        weight, total = there.float(), there.sum().clamp(min=1)
        return dict(
            loss_l1=self.loss_l1(
                boxes, box_convert(truth, 'xyxy', 'cxcywh'), weight[:, None], avg_factor=4 * total
            ),
            loss_giou=self.loss_giou(
                box_convert(boxes, 'cxcywh', 'xyxy'), truth, weight, avg_factor=total
            ),
        )

    def predict(self, states: Tensor, image_map: Tensor | None, sample: PixelDataSample) -> None:
        """Write ``pred_boxes``, see ``SegTokenHead``."""
        if image_map is None:
            sample.pred_boxes = states.new_zeros(0, 4, dtype=torch.float32)
            return
        (boxes,) = self([states], [image_map])
        boxes = box_convert(boxes.float(), 'cxcywh', 'xyxy').clamp(0, 1)
        sample.pred_boxes = boxes * boxes.new_tensor(_scale(sample))


def _look(queries: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(n,S)`` where queries ``(n,S)`` look, and ``(n,4)``: mean x, y, spread x, y."""
    height, width, channels = image.shape
    cells = image.flatten(0, 1)
    attention = (queries @ cells.T / channels**0.5).float().softmax(1)
    y, x = torch.meshgrid(
        (torch.arange(height, device=image.device) + 0.5) / height,
        (torch.arange(width, device=image.device) + 0.5) / width,
        indexing='ij',
    )
    places = torch.stack([x, y], dim=-1).flatten(0, 1)
    mean = attention @ places
    spread = (attention @ places**2 - mean**2).clamp(min=1e-6).sqrt()
    return attention.to(cells.dtype) @ cells, torch.cat([mean, spread], dim=1).to(cells.dtype)


def _scale(sample: PixelDataSample) -> list[int]:
    """Width, height, width, height of the original image."""
    height, width = sample.ori_shape
    return [width, height, width, height]
