"""Distillation from a vision expert."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsail_mm.models.necks.feature_maps import apply_per_pixel
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample


@MODELS.register_module()
class ExpertDistillLoss(nn.Module):
    """Squared error between a linear map of our features and an expert's dense features.

    The expert's map is resized (bilinear, no antialias) to ours; the mean over all elements is
    summed over the images that have an expert feature and divided by ``images + 1e-4`` (authors'
    release).

    Args:
        expert: Config of the expert, or a callable ``data_samples -> list of (C,h,w) | None``.
        in_channels: Channels of our features; filled in by the meta-architecture.
        feature: ``'neck'``: image features after the mask head's projection; ``'backbone'``: patch
            states after the final norm.
        expert_channels: Channels of the expert's map.
        loss_weight: Weight of the loss.
        name: Name in ``loss_distill_<name>``; by default the expert's type.

    Raises:
        ValueError: Unknown ``feature``, or the expert's channels differ from ``expert_channels``.
    """

    def __init__(self, expert, in_channels: int, feature: str = 'neck',
                 expert_channels: int = 256, loss_weight: float = 0.5,
                 name: str | None = None) -> None:
        super().__init__()
        if feature not in ('neck', 'backbone'):
            raise ValueError(f"distill.feature={feature!r}: use 'neck' or 'backbone'")
        self.expert = expert if callable(expert) else MODELS.build(expert)
        self.name = name or type(self.expert).__name__
        self.feature = feature
        self.expert_channels = expert_channels
        self.loss_weight = loss_weight
        self.proj = nn.Linear(in_channels, expert_channels)

    def forward(self, features: Sequence[Tensor | None],
                data_samples: Sequence[PixelDataSample]) -> Tensor:
        """Loss of a batch.

        Args:
            features: Our maps ``(h,w,in_channels)``, None for samples without image.
            data_samples: What the expert reads.

        Returns:
            Scalar; zero (with a gradient for ``proj``) when nothing can be compared.
        """
        with torch.no_grad():
            if hasattr(self.expert, 'to'):
                self.expert.to(self.proj.weight.device)
            targets = self.expert(data_samples)
        pairs = [(ours, theirs) for ours, theirs in zip(features, targets)
                 if ours is not None and theirs is not None]
        if not pairs:
            # Every process of a ZeRO run must call the projection.
            return 0.0 * self.proj(self.proj.weight.new_zeros(1, self.proj.in_features)).sum()
        projected = apply_per_pixel(self.proj, [ours for ours, _ in pairs])
        losses = [self._difference(ours, theirs) for ours, (_, theirs) in zip(projected, pairs)]
        return self.loss_weight * sum(losses) / (len(losses) + 1e-4)

    def _difference(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if theirs.shape[0] != self.expert_channels:
            raise ValueError(f'expert {self.name} gives {theirs.shape[0]} channels; set '
                             f'expert_channels={theirs.shape[0]} in its distill entry')
        theirs = F.interpolate(theirs[None].to(ours.device, torch.float32), size=ours.shape[:2],
                               mode='bilinear', align_corners=False)[0]
        return F.mse_loss(ours.float(), theirs.permute(1, 2, 0))
