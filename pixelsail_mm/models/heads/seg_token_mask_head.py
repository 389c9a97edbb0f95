"""Masks from ``[SEG]`` states: projections, point sampling and mask losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.heads.base import SegTokenHead
from pixelsail_mm.models.heads.mask_targets import RESIZE_MODES, resize_targets
from pixelsail_mm.models.initialisation import keep_variance
from pixelsail_mm.models.necks.feature_maps import apply_per_pixel
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

# Keeps the averages finite when a batch holds no mask (authors' release).
EPS = 1e-4


class _FoldableLinear(nn.Linear):
    """Linear layer whose product with a vector can be taken before its input is known.

    ``q . (W x + b) = (q W) . x + q . b``: with few vectors ``q`` and many ``x`` the right side is
    cheaper. It is a call of the module, as ZeRO-3 gathers weights only for calls.
    """

    def forward(self, x: Tensor, fold: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """``W x + b``; with ``fold`` the pair ``(x W, x . b)`` of ``x`` ``(n,out_features)``."""
        return (x @ self.weight, x @ self.bias) if fold else super().forward(x)


def _projector(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, hidden_channels),
        nn.ReLU(),
        _FoldableLinear(hidden_channels, out_channels),
    )


@MODELS.register_module()
class SegTokenMaskHead(SegTokenHead):
    """Mask logits as dot products of ``[SEG]`` embeddings with projected image features.

    Learns from ``gt_masks``, writes ``pred_masks`` and ``pred_scores``. No scale and no bias
    (Pixel-SAIL paper, section 3; behaviour of the release). Losses are MMDetection's, computed in
    float32.

    Args:
        in_channels: Channels of the neck's maps; filled in by the meta-architecture.
        hidden_size: Channels C of the transformer; filled in by the meta-architecture.
        embed_channels: Width S of the common space.
        num_points: Points per mask (PointRend sampling); None compares whole masks, the ground
            truth resized to the logits.
        oversample_ratio: Candidates per point in PointRend sampling.
        importance_sample_ratio: Share of points chosen for their uncertainty.
        loss_mask: Config of the per-pixel loss.
        loss_dice: Config of the region loss.
        threshold: Probability above which a pixel belongs to the mask.
        target_resize: How whole masks are resized to the logits, see
            :func:`~pixelsail_mm.models.heads.mask_targets.resize_targets`: ``'area'``,
            ``'nearest-exact'`` or ``'nearest'`` (authors' release, shifts the masks).
        fold_projector: Multiply the last layer of the image projector into the ``[SEG]``
            embeddings instead of into every pixel: the same logits up to rounding in less time. The
            features are then those before that layer. The meta-architecture switches it off where
            a distillation reads the projected features (``feature='neck'``).
        embed_std: Start with weights that keep variance (see
            :func:`~pixelsail_mm.models.initialisation.keep_variance`) and give embeddings and
            image features of unit-variance inputs this standard deviation; None keeps PyTorch's.
        init_cfg: MMEngine initialisation config.

    Raises:
        ConfigError: Unknown ``target_resize``.
    """

    targets = ('gt_masks',)
    losses = ('loss_mask', 'loss_dice')

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        embed_channels: int = 512,
        num_points: int | None = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        loss_mask: dict | None = None,
        loss_dice: dict | None = None,
        threshold: float = 0.5,
        target_resize: str = 'area',
        fold_projector: bool = False,
        embed_std: float | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if target_resize not in RESIZE_MODES:
            raise ConfigError(
                f'mask_head.target_resize={target_resize!r}: use one of {list(RESIZE_MODES)}'
            )
        self.embed_channels = embed_channels
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.threshold = threshold
        self.target_resize = target_resize
        self.fold_projector = fold_projector
        self.image_projector = _projector(in_channels, in_channels, embed_channels)
        self.seg_projector = _projector(hidden_size, in_channels, embed_channels)
        if embed_std is not None:
            for first, _, second in (self.image_projector, self.seg_projector):
                keep_variance(first, 2**0.5)
                keep_variance(second, embed_std)
        self.loss_mask = MODELS.build(
            loss_mask
            or dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=2.0)
        )
        self.loss_dice = MODELS.build(
            loss_dice
            or dict(
                type='DiceLoss',
                use_sigmoid=True,
                activate=True,
                reduction='mean',
                naive_dice=True,
                eps=1.0,
                loss_weight=0.5,
            )
        )

    def project_images(self, maps: list[Tensor]) -> list[Tensor]:
        """Image features ``(H,W,D)`` of neck maps ``(H,W,in_channels)``.

        D is S, or with ``fold_projector`` the width in front of the last layer.
        """
        layers = self.image_projector[:-1] if self.fold_projector else self.image_projector
        return apply_per_pixel(layers, maps)

    def project_segs(self, states: list[Tensor]) -> list[Tensor]:
        """``[SEG]`` embeddings ``(n,S)`` of final states ``(n,C)``."""
        return apply_per_pixel(self.seg_projector, states)

    def forward(self, states: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        """Mask logits ``(n,H,W)`` per image, see :class:`SegTokenHead`."""
        queries = self.project_segs(states)
        offsets = [None] * len(queries)
        if self.fold_projector:
            numbers = [len(query) for query in queries]
            folded, offset = self.image_projector[-1](torch.cat(queries), fold=True)
            queries, offsets = folded.split(numbers), offset.split(numbers)
        return [
            self.mask_logits(query, feature, offset)
            for query, feature, offset in zip(queries, maps, offsets)
        ]

    def mask_logits(self, queries: Tensor, image: Tensor, offset: Tensor | None = None) -> Tensor:
        """Mask logits of one image.

        Args:
            queries: ``(n,D)``, one for each mask.
            image: Features ``(H,W,D)``, see :meth:`project_images`.
            offset: ``(n,)`` added to all logits of a mask.

        Returns:
            ``(n,H,W)``.
        """
        logits = queries @ image.flatten(0, 1).T
        if offset is not None:
            logits = logits + offset[:, None]
        return logits.view(-1, *image.shape[:2])

    def loss(
        self, states: list[Tensor], maps: list[Tensor], samples: Sequence[PixelDataSample]
    ) -> dict[str, Tensor]:
        """Mask losses of a batch, see :class:`SegTokenHead`."""
        return self.loss_by_logits(self(states, maps), [sample.gt_masks for sample in samples])

    def loss_by_logits(self, logits: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        """Mask losses of a batch.

        Args:
            logits: Per image ``(n,H,W)``, any float dtype.
            targets: Per image binary masks ``(n,H,W)`` at their own resolution.

        Returns:
            ``loss_mask`` and ``loss_dice``: averages over all masks of the batch (zero for empty
            lists).
        """
        pairs = self._pairs(logits, targets)
        # Per-mask averages summed, over the number of masks: what the release computes.
        total = sum(len(prediction) for prediction, _ in pairs) + EPS
        losses_mask, losses_dice = [], []
        for prediction, target in pairs:
            cells = prediction.shape[1]
            slack = EPS if self.num_points else 0.0
            losses_mask.append(
                self.loss_mask(prediction.flatten(), target.flatten(), avg_factor=cells + slack)
            )
            losses_dice.append(self.loss_dice(prediction, target, avg_factor=1.0 + slack))
        return dict(loss_mask=sum(losses_mask) / total, loss_dice=sum(losses_dice) / total)

    def _pairs(self, logits: list[Tensor], targets: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Matching float32 predictions and targets ``(n,P)``, masks of equal size together."""
        if self.num_points:
            points = [self._sample_points(x.float(), y) for x, y in zip(logits, targets)]
            return [tuple(map(torch.cat, zip(*points)))] if points else []
        resized = [
            resize_targets(y.to(x.device), x.shape[-2:], self.target_resize)
            for x, y in zip(logits, targets)
        ]
        by_size: dict[tuple, list[int]] = {}
        for index, x in enumerate(logits):
            by_size.setdefault(tuple(x.shape[-2:]), []).append(index)
        return [
            (
                torch.cat([logits[i] for i in group]).flatten(1).float(),
                torch.cat([resized[i] for i in group]).flatten(1),
            )
            for group in by_size.values()
        ]

    def _sample_points(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and soft targets ``(n,P)`` at points chosen by uncertainty (PointRend)."""
        from mmcv.ops import point_sample
        from mmdet.models.utils import get_uncertain_point_coords_with_randomness

        logits = logits.unsqueeze(1)
        target = target.to(logits.device, torch.float32).unsqueeze(1)
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                logits.detach(),
                None,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            sampled_target = point_sample(target, points).squeeze(1)
        return point_sample(logits, points).squeeze(1), sampled_target

    def predict(self, states: Tensor, image_map: Tensor | None, sample: PixelDataSample) -> None:
        """Write ``pred_masks`` and ``pred_scores``, see :class:`SegTokenHead`."""
        logits = states.new_zeros(0, 1, 1)
        if image_map is not None:
            (logits,) = self([states], [image_map])
        sample.pred_masks, sample.pred_scores = self.predict_by_logits(
            logits, sample.get('ori_shape') or (0, 0)
        )

    def predict_by_logits(
        self, logits: Tensor, ori_shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Masks at the size of the original image.

        Args:
            logits: ``(n,h,w)``.
            ori_shape: ``(H,W)`` in pixels.

        Returns:
            Boolean masks ``(n,H,W)``, and float32 scores ``(n,)`` whatever the logits are: the mean
            probability inside each mask (0 for an empty one).
        """
        if len(logits) == 0:
            return (
                logits.new_zeros((0, *ori_shape), dtype=torch.bool),
                logits.new_zeros(0, dtype=torch.float32),
            )
        probabilities = F.interpolate(
            logits[None].float(), size=tuple(ori_shape), mode='bilinear', align_corners=False
        )[0].sigmoid()
        masks = probabilities > self.threshold
        area = masks.flatten(1).sum(1)
        scores = (probabilities * masks).flatten(1).sum(1) / area.clamp(min=1)
        return masks, scores
