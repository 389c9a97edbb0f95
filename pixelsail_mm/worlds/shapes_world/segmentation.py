"""Pixel-exact COCO segmentations of masks."""

from __future__ import annotations

import cv2
import numpy as np
from pycocotools import mask as coco_mask

_UPSCALE = 2


def mask_bbox(mask: np.ndarray) -> list[int]:
    """Tight [x, y, width, height] of a bool (H, W) mask in pixels."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(cols[0]), int(rows[0]), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1]


def mask_to_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """COCO polygons that pycocotools rasterises back to exactly this mask.

    Contours are traced on an enlarged mask, so that they run between pixel centres. A hole is
    joined to its outer contour by a slit of no width, as COCO polygons know no holes.

    Args:
        mask: bool (H, W).

    Returns:
        List of flat [x0, y0, x1, y1, ...] in pixels, or None if no exact polygon was found.
    """
    large = np.repeat(np.repeat(mask.astype(np.uint8), _UPSCALE, 0), _UPSCALE, 1)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    rings = [(contour[:, 0].astype(np.float64) + 0.5) / _UPSCALE for contour in contours]
    polygons = []
    for i, ring in enumerate(rings):
        if hierarchy[0, i, 3] >= 0:
            continue
        child = hierarchy[0, i, 2]
        while child >= 0:
            ring = _join(ring, rings[child])
            child = hierarchy[0, child, 0]
        if len(ring) < 3:
            return None
        polygons.append(ring.round(2).ravel().tolist())
    height, width = mask.shape
    decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    return polygons if np.array_equal(decoded.astype(bool), mask) else None


def _join(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    distances = np.abs(outer[:, None] - hole[None]).sum(-1)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    loop = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([outer[: i + 1], loop, outer[i:]])
