"""Targets of the box head."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from pixelsail_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadBoxes(BaseTransform):
    """Take the boxes of the annotation, or the smallest boxes around the masks.

    Stands behind ``LoadMasks``. Required key: ``gt_masks``; optional ``boxes`` (see ``with_boxes``
    of the RefCOCO reader).

    Added key: ``gt_boxes`` (float32 (n, 4), x1, y1, x2, y2 in pixels of the original image; the
    pixel in column c spans c to c + 1). The box of an empty mask is all zeros.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_boxes``."""
        boxes = results.get('boxes')
        if boxes is None:
            boxes = [_around(mask) for mask in results['gt_masks']]
        results['gt_boxes'] = np.array(boxes, np.float32).reshape(-1, 4)
        return results


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around a mask ``(H, W)``."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0, 0, 0, 0
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
