"""Referring and reasoning segmentation: cIoU, gIoU, Pr@x, N-acc and T-acc in one metric."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from pixelsail_mm.evaluation.metrics.base import PixelMetric, to_bool_masks
from pixelsail_mm.registry import METRICS

SELECT = ('first', 'union', 'paired')


@METRICS.register_module()
class RefSegMetric(PixelMetric):
    """Segmentation by a text, scored the strict way. All values are fractions in 0..1.

    ========  ====================================================================================
    cIoU      sum of intersections / sum of unions over all expressions ("cumulative IoU"; 1 if all
              are empty)
    gIoU      mean IoU of the expressions (called mIoU elsewhere)
    Pr@t      share of expressions with IoU > t
    missing   share of the non-empty targets for which the model gave no mask at all
    N-acc     share of the no-target expressions left empty; only reported if there are any
    T-acc     share of the target expressions not left empty; reported together with N-acc
    ========  ====================================================================================

    Rules (section "Evaluation" of the authors' release, and where this differs from it):

    * A missing prediction is a zero mask: IoU 0, and its target adds to the union. (The release
      does so on RefCOCO but leaves such samples out of cIoU on ReasonSeg and PerBench.)
    * Target and prediction both empty: IoU 1, nothing added to the sums. A prediction on a
      no-target expression scores 0 and adds to the union.
    * Targets are binarised before counting.

    Reads ``gt_masks`` ``(n, H, W)`` and ``pred_masks`` ``(m, H, W)``, both at the size of the
    original image.

    Args:
        thresholds: The t of ``Pr@t``.
        select: What is compared. ``'first'``: first predicted mask with the one target (RefCOCO,
            ReasonSeg); ``'union'``: union of all predictions with union of all targets (gRefCOCO);
            ``'paired'``: i-th prediction with i-th target, each pair an expression of its own,
            surplus predictions are ignored (PerBench).
        empty_below: A prediction with fewer pixels counts as empty for N-acc and T-acc (IoU is
            not affected). 1: only truly empty ones; gRefCOCO's convention is 50.
        prefix: Prefix of the names.
        **kwargs: See :class:`PixelMetric`.

    Raises:
        ValueError: In :meth:`process`, naming the sample: masks of different sizes, or several
            targets with ``select='first'``.
        KeyError: In :meth:`process`: a sample without ``gt_masks`` or ``pred_masks``.
    """

    default_prefix = 'refseg'

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.7, 0.9), select: str = 'first',
                 empty_below: int = 1, prefix: str | None = None, **kwargs) -> None:
        super().__init__(prefix=prefix, **kwargs)
        if select not in SELECT:
            raise ValueError(f'RefSegMetric: select must be one of {SELECT}, got {select!r}')
        if not all(0 <= t <= 1 for t in thresholds):
            raise ValueError(f'RefSegMetric: thresholds are fractions 0..1, got {thresholds}')
        self.thresholds = tuple(thresholds)
        self.select = select
        self.empty_below = empty_below

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Count the pixels of one sample.

        Returns:
            dict with ``pairs``: one ``(intersection, union, target area, prediction area, whether
            the model gave a mask)`` per expression.
        """
        pred, gt = self._masks(sample)
        if self.select == 'paired':
            pairs = [(pred[i:i + 1], gt[i:i + 1]) for i in range(max(len(gt), 1))]
        elif self.select == 'union':
            pairs = [(pred, gt)]
        else:
            pairs = [(pred[:1], gt)]
        return dict(pairs=[_count(p.any(axis=0), t.any(axis=0)) + (len(p) > 0,) for p, t in pairs])

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the table above from the pixel counts."""
        pairs = np.array([pair for record in records for pair in record['pairs']], dtype=np.int64)
        inter, union, gt_area, pred_area, given = pairs.T
        iou = np.where(union > 0, inter / np.maximum(union, 1), 1.0)
        metrics = dict(
            cIoU=float(inter.sum() / union.sum()) if union.sum() else 1.0,
            gIoU=float(iou.mean()))
        metrics.update({f'Pr@{t:g}': float((iou > t).mean()) for t in self.thresholds})
        has_target = gt_area > 0
        said_empty = pred_area < self.empty_below
        if has_target.any():
            metrics['missing'] = float((given[has_target] == 0).mean())
        if not has_target.all():
            metrics['N-acc'] = float(said_empty[~has_target].mean())
            if has_target.any():
                metrics['T-acc'] = float((~said_empty[has_target]).mean())
        return metrics

    def _masks(self, sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return predictions and targets as boolean arrays, checked against each other."""
        name = f"RefSegMetric: sample {sample['sample_id']!r}"
        for key in ('gt_masks', 'pred_masks'):
            if sample.get(key) is None:
                raise KeyError(f'{name} has no {key!r}; the pipeline must load the true masks and '
                               "the model must run in mode='predict'. Other tasks in the same "
                               "test set are left out with `tasks=['refseg']`")
        gt = to_bool_masks(sample['gt_masks'], f'{name}: gt_masks')
        pred = to_bool_masks(sample['pred_masks'], f'{name}: pred_masks')
        if pred.shape[1:] != gt.shape[1:]:
            raise ValueError(f'{name}: predicted masks are {pred.shape[1:]}, true masks '
                             f'{gt.shape[1:]}; both must have the size of the original image')
        if self.select == 'first' and len(gt) > 1:
            raise ValueError(f"{name} has {len(gt)} true masks but select='first' compares one; "
                             "use select='union' or select='paired'")
        return pred, gt


def _count(pred: np.ndarray, gt: np.ndarray) -> tuple[int, int, int, int]:
    """Pixels of the intersection, the union, the target and the prediction."""
    inter, gt_area, pred_area = int((pred & gt).sum()), int(gt.sum()), int(pred.sum())
    return inter, gt_area + pred_area - inter, gt_area, pred_area
