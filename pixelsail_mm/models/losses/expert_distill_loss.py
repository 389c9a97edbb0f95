"""Distillation from a vision expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.every_rank import with_gradient, zero_of
from pixelsail_mm.models.necks.feature_maps import apply_per_pixel
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

#: Makes an average over no image finite (authors' release).
EPS = 1e-4


def _cosine_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()


# The authors' release uses the squared error and keeps a cosine term commented out.
_DISTANCES = dict(
    mse=F.mse_loss,
    cosine=_cosine_distance,
    both=lambda ours, theirs: F.mse_loss(ours, theirs) + _cosine_distance(ours, theirs),
)


@MODELS.register_module()
class ExpertDistillLoss(nn.Module):
    """Distance between a linear map of our features and an expert's dense features.

    The expert's map is resized (bilinear, no antialias) to ours; the mean over all elements is
    summed over the images that have an expert feature and divided by ``images + 1e-4`` (authors'
    release). Distances are computed in float32 whatever the precision of the model.

    Args:
        expert: Config of the expert, or a callable ``data_samples -> list of (C,h,w) | None``.
            Never a part of this module: it has no key in the ``state_dict`` and gets no gradient.
        in_channels: Channels of our features; filled in by the meta-architecture.
        feature: ``'neck'``: image features after the mask head's projection; ``'backbone'``: patch
            states after the final norm.
        expert_channels: Channels of the expert's map.
        loss_weight: Weight of the loss.
        name: Name in ``loss_distill_<name>``; by default the expert's type. Two experts of one
            type need names.
        distance: ``'mse'``, ``'cosine'`` (one minus the cosine over the channels, mean over the
            cells) or ``'both'`` (their sum).
        channel_weights: Factors on the squared errors of the expert's channels, for channels that
            are harder to learn than others; None weighs all alike. Only with ``'mse'``.

    Raises:
        ConfigError: Unknown ``feature`` or ``distance``, or ``channel_weights`` of another number
            or with another distance.
    """

    def __init__(
        self,
        expert: dict | Callable,
        in_channels: int,
        feature: str = 'neck',
        expert_channels: int = 256,
        loss_weight: float = 0.5,
        name: str | None = None,
        distance: str = 'mse',
        channel_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if feature not in ('neck', 'backbone'):
            raise ConfigError(f"distill.feature={feature!r}: use 'neck' or 'backbone'")
        if distance not in _DISTANCES:
            raise ConfigError(f'distill.distance={distance!r}: use one of {list(_DISTANCES)}')
        expert = expert if callable(expert) else MODELS.build(expert)
        if isinstance(expert, nn.Module):
            expert.eval().requires_grad_(False)
        # In a tuple, so that an expert that is a module does not become a child of this one.
        self._hidden_expert = (expert,)
        self.name = name or type(expert).__name__
        self.feature = feature
        self.expert_channels = expert_channels
        self.loss_weight = loss_weight
        self.distance = distance
        self.proj = nn.Linear(in_channels, expert_channels)
        # Known from the config, hence not in the state dict.
        self.register_buffer('channel_scales', None, persistent=False)
        self.set_channel_weights(channel_weights)

    def set_channel_weights(self, weights: Sequence[float] | None) -> None:
        """Weigh the expert's channels anew, see ``channel_weights``.

        Args:
            weights: One factor >= 0 for each channel; None weighs all alike.

        Raises:
            ConfigError: Another number of weights, one below 0, or another distance than
                ``'mse'``.
        """
        if weights is not None and (self.distance != 'mse' or len(weights) != self.expert_channels):
            raise ConfigError(
                f'distill.channel_weights: {len(weights)} weights for '
                f'{self.expert_channels} channels and distance={self.distance!r}; '
                "give one for each channel, with distance='mse'"
            )
        # Their roots would be NaN, and so would the loss.
        if weights is not None and not all(weight >= 0 for weight in weights):
            raise ConfigError(f'distill.channel_weights={list(weights)}: give numbers >= 0')
        self.channel_scales = (
            None
            if weights is None
            else torch.tensor(weights, dtype=torch.float32, device=self.proj.weight.device).sqrt()
        )

    @property
    def expert(self) -> Callable:
        """The frozen teacher."""
        return self._hidden_expert[0]

    def forward(
        self, features: Sequence[Tensor | None], data_samples: Sequence[PixelDataSample]
    ) -> Tensor:
        """Loss of a batch.

        Args:
            features: Our maps ``(h,w,in_channels)``, None for samples without image.
            data_samples: What the expert reads.

        Returns:
            Scalar float32; zero when nothing can be compared, then still with a gradient (of
            zeros) for ``proj`` and for every map.

        Raises:
            ConfigError: The expert does not give one map ``(expert_channels,h,w)`` or None per
                sample.
        """
        maps = [feature for feature in features if feature is not None]
        # Not `self.proj.weight`: ZeRO-3 would count that as a use of the weight by this module,
        # whose end in the backward pass it never sees where no map is given.
        weight = next(self.proj.parameters())
        device = maps[0].device if maps else weight.device
        targets = self._targets(data_samples, device)
        maps = maps or [torch.zeros(1, 1, self.proj.in_features, device=device)]
        maps = [with_gradient(feature.to(weight.dtype)) for feature in maps]
        with torch.autocast(device.type, enabled=False):
            projected = apply_per_pixel(self.proj, maps)
            present = [theirs for ours, theirs in zip(features, targets) if ours is not None]
            losses = [
                self._distance(ours, theirs)
                for ours, theirs in zip(projected, present)
                if theirs is not None
            ]
            if not losses:
                return zero_of(*projected)
            return self.loss_weight * sum(losses) / (len(losses) + EPS)

    @torch.no_grad()
    def _targets(
        self, data_samples: Sequence[PixelDataSample], device: torch.device
    ) -> list[Tensor | None]:
        """Maps of the expert, which follows our features to their device."""
        if hasattr(self.expert, 'to'):
            self.expert.to(device)
        targets = self.expert(data_samples)
        if len(targets) != len(data_samples):
            raise ConfigError(
                f'expert {self.name} gives {len(targets)} maps for '
                f'{len(data_samples)} samples; it must give one map or None for '
                'each'
            )
        return targets

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if theirs.ndim != 3 or theirs.shape[0] != self.expert_channels:
            raise ConfigError(
                f'expert {self.name} gives maps {tuple(theirs.shape)}; set '
                f'expert_channels={theirs.shape[0]} in its distill entry if these '
                'are (channels, height, width)'
            )
        theirs = F.interpolate(
            theirs[None].to(ours.device, torch.float32),
            size=ours.shape[:2],
            mode='bilinear',
            align_corners=False,
        )[0]
        ours, theirs = ours.float(), theirs.permute(1, 2, 0)
        if self.channel_scales is not None:
            ours, theirs = ours * self.channel_scales, theirs * self.channel_scales
        return _DISTANCES[self.distance](ours, theirs)
