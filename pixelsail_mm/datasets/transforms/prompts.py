"""Augmentation of visual prompts."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from scipy import ndimage

from pixelsail_mm.datasets.transforms.loading import Results
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PromptTypeAugment(BaseTransform):
    """Replace prompt masks by their box or by one of their points, at random.

    Each mask draws its new kind independently. Only masks of a single 4-connected component are
    replaced, and prompts that already are boxes or points stay. *Box*: the tight bounding
    rectangle, filled. *Point*: one pixel, uniform among those farther than ``min_depth`` from the
    background (Euclidean distance; the image border is not background), else the deepest pixel.
    The order stays that of the original areas. Probabilities are those of the release's
    "augmented" readers.

    Required keys: ``prompt_masks``, ``prompt_kinds``, ``rng`` (``np.random.Generator`` of the
    sample). Changed: ``prompt_masks``, ``prompt_kinds``.

    Args:
        probs: Weights of (mask, box, point), at least one positive; normalised.
        min_depth: Depth in pixels of the original image beyond which a point is drawn uniformly;
            the release takes the patch size.
    """

    def __init__(
        self, probs: tuple[float, float, float] = (0.4, 0.3, 0.3), min_depth: float = 16
    ) -> None:
        weights = np.asarray(probs, float)
        if weights.shape != (3,) or (weights < 0).any() or not weights.sum() > 0:
            raise ConfigError(
                'PromptTypeAugment: probs must be three weights >= 0 for mask, box '
                f'and point, not all 0; got {probs}'
            )
        self.probs = weights / weights.sum()
        self.min_depth = min_depth

    def transform(self, results: Results) -> Results:
        """Replace some prompt masks."""
        rng = results['rng']
        masks = results['prompt_masks'].copy()
        kinds = list(results['prompt_kinds'])
        for i, mask in enumerate(masks):
            kind = ('mask', 'box', 'point')[rng.choice(3, p=self.probs)]
            if kinds[i] != 'mask' or kind == 'mask' or not mask.any():
                continue
            rows, cols = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
            box = slice(rows[0], rows[1] + 1), slice(cols[0], cols[1] + 1)
            if ndimage.label(mask[box])[1] != 1:
                continue
            if kind == 'box':
                mask[box] = True
            else:
                row, col = self._point(mask, box, rng)
                mask[:] = False
                mask[row, col] = True
            kinds[i] = kind
        results.update(prompt_masks=masks, prompt_kinds=kinds)
        return results

    def _point(
        self, mask: np.ndarray, box: tuple[slice, slice], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Draw (row, column) of a point deep inside ``mask``, whose bounding box is ``box``."""
        # One ring of pixels around the box holds the nearest background of every mask pixel.
        rows, cols = (slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        crop = mask[rows, cols]
        depth = np.full(crop.shape, np.inf) if crop.all() else ndimage.distance_transform_edt(crop)
        deep = np.argwhere(depth > self.min_depth)
        row, col = (
            deep[rng.integers(len(deep))]
            if len(deep)
            else np.unravel_index(depth.argmax(), depth.shape)
        )
        return int(row) + rows.start, int(col) + cols.start

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(probs={self.probs.round(4).tolist()}, '
            f'min_depth={self.min_depth})'
        )
