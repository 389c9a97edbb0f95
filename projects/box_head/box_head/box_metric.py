"""Accuracy of boxes in referring expressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchvision.ops import box_iou

from pixelsail_mm.evaluation.metrics import PixelMetric
from pixelsail_mm.registry import METRICS


@METRICS.register_module()
class BoxMetric(PixelMetric):
    """``Acc@0.5``: share of expressions whose box has an IoU above 0.5 with the true one.

    Also ``mIoU``, the mean IoU, and ``missing``, the share of expressions without any box. The
    first predicted box counts. Expressions without a target (a true box of no size) are left out.
    Reads ``gt_boxes`` ``(n,4)`` and ``pred_boxes`` ``(m,4)``.

    Args:
        threshold: IoU above which a box counts as right.
        prefix: Prefix of the names.
        **kwargs: See ``PixelMetric``.
    """

    default_prefix = 'box'

    def __init__(self, threshold: float = 0.5, prefix: str | None = None, **kwargs) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.threshold = threshold

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """IoU of the first box with the true one; None without a target."""
        truth, found = (
            torch.as_tensor(sample[key]).float().cpu() for key in ('gt_boxes', 'pred_boxes')
        )
        if not len(truth) or not (truth[0, 2:] > truth[0, :2]).all():
            return dict(iou=None, given=bool(len(found)))
        iou = box_iou(found[:1], truth[:1]).item() if len(found) else 0.0
        return dict(iou=iou, given=bool(len(found)))

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Compute the values from the IoU of all expressions."""
        records = [record for record in records if record['iou'] is not None]
        total = max(len(records), 1)
        return {
            f'Acc@{self.threshold:g}': sum(record['iou'] > self.threshold for record in records)
            / total,
            'mIoU': sum(record['iou'] for record in records) / total,
            'missing': sum(not record['given'] for record in records) / total,
        }
