"""Referring and reasoning segmentation: cIoU, gIoU, Pr@x, N-acc and T-acc in one metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.evaluation.metrics.base import PixelMetric, read_masks, to_bool_masks
from pixelsail_mm.evaluation.protocols import check_protocol
from pixelsail_mm.registry import METRICS

SELECT = ('first', 'union', 'paired')
PRECISION = ('all', 'targeted')
# The authors' script of this task leaves a sample without predicted mask out of cIoU.
_MISSING_LEFT_OUT = 'reasonseg'


@METRICS.register_module()
class RefSegMetric(PixelMetric):
    """Segmentation by a text: RefCOCO, gRefCOCO, ReasonSeg. All values are fractions in 0..1.

    ========  ====================================================================================
    cIoU      sum of intersections / sum of unions over all expressions ("cumulative IoU"; 1 if all
              are empty)
    gIoU      mean IoU of the expressions (called mIoU elsewhere)
    Pr@t      share of expressions with IoU > t; see ``precision``
    missing   share of the non-empty targets for which the model gave no mask at all
    N-acc     share of the no-target expressions left empty; only reported if there are any
    T-acc     share of the target expressions not left empty; reported together with N-acc
    ========  ====================================================================================

    Rules:

    * A missing prediction is a zero mask: IoU 0, and its target adds to the union.
    * Target and prediction both empty: IoU 1, nothing added to the sums. A prediction on a
      no-target expression scores 0 and adds to the union.
    * Targets are binarised before counting.
    * Pixels to ignore (ReasonSeg) count neither in the target nor in the prediction.

    ``protocol='paper'`` does what the authors' release does where that is something else; its
    results hold ``protocol='paper'`` beside the numbers:

    * Only the first predicted mask counts, whatever ``select`` says (gRefCOCO), also for N-acc and
      T-acc, which the release does not give.
    * The IoU of a sample is I / (U + 1e-5).
    * ReasonSeg (``task`` of the sample is ``'reasonseg'``): a sample without predicted mask has
      IoU 0, but is left out of the sums of cIoU. Target and ignored pixels are decoded from one
      run-length code, in which an ignored region turns into foreground, or bends the target.
    * Not reproduced: in the release, pixels on which polygons of one target overlap count nowhere.

    Reads ``gt_masks`` ``(n, H, W)``, ``pred_masks`` ``(m, H, W)`` and, if there are any,
    ``ignore_masks`` ``(n, H, W)``, all at the size of the original image.

    Args:
        thresholds: The t of ``Pr@t``.
        select: What is compared. ``'first'``: first predicted mask with the one target (RefCOCO,
            ReasonSeg); ``'union'``: union of all predictions with union of all targets (gRefCOCO);
            ``'paired'``: i-th prediction with i-th target, each pair an expression of its own,
            surplus predictions are ignored (PerBench).
        precision: What ``Pr@t`` counts. ``'all'``: the share of all expressions with IoU > t
            (RefCOCO). ``'targeted'``: among the expressions with a target, the share with IoU >= t
            (gRefCOCO as ReLA evaluates it; otherwise empty masks for everything reach the share of
            no-target expressions). Not reported where no expression has a target.
        empty_below: A prediction with fewer pixels counts as empty for N-acc and T-acc (IoU is
            not affected). 1: only truly empty ones; gRefCOCO's convention is 50.
        protocol: ``'strict'`` or, only for comparing with published numbers, ``'paper'``.
        **kwargs: See :class:`PixelMetric`.

    Raises:
        ValueError: Settings that do not exist or do not go together. In :meth:`process`, naming
            the sample: masks of different sizes, not as many masks to ignore as targets, or
            several targets with ``select='first'``.
        KeyError: In :meth:`process`: a sample without ``gt_masks`` or ``pred_masks``.
    """

    default_prefix = 'refseg'

    def __init__(
        self,
        thresholds: Sequence[float] = (0.5, 0.7, 0.9),
        select: str = 'first',
        precision: str = 'all',
        empty_below: int = 1,
        protocol: str = 'strict',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if select not in SELECT:
            raise ValueError(f'RefSegMetric: select must be one of {SELECT}, got {select!r}')
        if precision not in PRECISION:
            raise ValueError(
                f'RefSegMetric: precision must be one of {PRECISION}, got {precision!r}'
            )
        if not all(0 <= t <= 1 for t in thresholds):
            raise ValueError(f'RefSegMetric: thresholds are fractions 0..1, got {thresholds}')
        if protocol == 'paper' and select == 'paired':
            raise ValueError(
                "RefSegMetric: protocol='paper' compares the first predicted mask; "
                "use select='first', or select='union' for gRefCOCO"
            )
        self.protocol = check_protocol(protocol, 'RefSegMetric')
        self.thresholds = tuple(thresholds)
        self.select = select
        self.precision = precision
        self.empty_below = empty_below

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the values depend on, for the result file."""
        return dict(
            protocol=self.protocol,
            thresholds=list(self.thresholds),
            select=self.select,
            precision=self.precision,
            empty_below=self.empty_below,
        )

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Count the pixels of one sample.

        Returns:
            dict with ``pairs``: one ``(intersection, union, target area, prediction area, whether
            the model gave a mask, whether it counts in the sums)`` per expression.
        """
        pred, gt, ignore = self._masks(sample)
        if self.select == 'paired':
            pairs = [
                (pred[i : i + 1], gt[i : i + 1], ignore[i : i + 1]) for i in range(max(len(gt), 1))
            ]
        elif self.select == 'union' and self.protocol == 'strict':
            pairs = [(pred, gt, ignore)]
        else:
            pairs = [(pred[:1], gt, ignore)]
        left_out = self.protocol == 'paper' and sample.get('task') == _MISSING_LEFT_OUT
        return dict(
            pairs=[
                self._count(*(masks.any(axis=0) for masks in pair))
                + (len(pair[0]) > 0, len(pair[0]) > 0 or not left_out)
                for pair in pairs
            ]
        )

    def _count(
        self, pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray
    ) -> tuple[int, int, int, int]:
        """Pixels of the intersection, the union, the target and the prediction."""
        if self.protocol == 'paper':
            gt = _one_code(gt, ignore)
        else:
            pred, gt = pred & ~ignore, gt & ~ignore
        inter, gt_area, pred_area = int((pred & gt).sum()), int(gt.sum()), int(pred.sum())
        return inter, gt_area + pred_area - inter, gt_area, pred_area

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Compute the table above from the pixel counts."""
        pairs = np.array([pair for record in records for pair in record['pairs']], dtype=np.int64)
        inter, union, gt_area, pred_area, given, counts = pairs.T
        paper = self.protocol == 'paper'
        iou = np.where(union > 0, inter / (np.maximum(union, 1) + (1e-5 if paper else 0)), 1.0)
        iou[counts == 0] = 0
        inter, union = inter[counts == 1].sum(), union[counts == 1].sum()
        metrics: dict[str, Any] = dict(
            cIoU=float(inter / union) if union else 1.0, gIoU=float(iou.mean())
        )
        has_target = gt_area > 0
        metrics.update(self._precisions(iou, has_target))
        said_empty = pred_area < self.empty_below
        if has_target.any():
            metrics['missing'] = float((given[has_target] == 0).mean())
        if not has_target.all():
            metrics['N-acc'] = float(said_empty[~has_target].mean())
            if has_target.any():
                metrics['T-acc'] = float((~said_empty[has_target]).mean())
        # Last: hooks take the first value for the one to watch.
        return {**metrics, 'protocol': 'paper'} if paper else metrics

    def _precisions(self, iou: np.ndarray, has_target: np.ndarray) -> dict[str, float]:
        if self.precision == 'all':
            return {f'Pr@{t:g}': float((iou > t).mean()) for t in self.thresholds}
        iou = iou[has_target]
        return {f'Pr@{t:g}': float((iou >= t).mean()) for t in self.thresholds if len(iou)}

    def _masks(self, sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predictions, targets and pixels to ignore as boolean arrays, checked."""
        name = f'RefSegMetric: sample {sample["sample_id"]!r}'
        for key in ('gt_masks', 'pred_masks'):
            if sample.get(key) is None:
                raise KeyError(
                    f'{name} has no {key!r}; the pipeline must load the true masks and '
                    "the model must run in mode='predict'. Other tasks in the same "
                    "test set are left out with `tasks=['refseg']`"
                )
        pred, gt = read_masks(sample, name)
        if self.select == 'first' and len(gt) > 1:
            raise ValueError(
                f"{name} has {len(gt)} true masks but select='first' compares one; "
                "use select='union' or select='paired'"
            )
        if sample.get('ignore_masks') is None:
            return pred, gt, np.zeros_like(gt)
        ignore = to_bool_masks(sample['ignore_masks'], f'{name}: ignore_masks')
        if ignore.shape != gt.shape:
            raise ValueError(
                f'{name}: ignore_masks are {ignore.shape}, gt_masks {gt.shape}; give '
                'one mask of pixels to ignore for each target'
            )
        return pred, gt, ignore


def _one_code(gt: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """Target that the release's one run-length code of target and ignored pixels decodes to.

    Run lengths alternate between background and foreground at every change of value, here between
    0, 1 (target) and 255 (ignored), in column-major order.
    """
    values = np.where(ignore, 255, gt.astype(np.int16)).ravel(order='F')
    inside = np.cumsum(np.diff(values, prepend=0) != 0) % 2 == 1
    return inside.reshape(gt.shape, order='F')
