"""Pictures of answers with boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pixelsail_mm.registry import VISUALIZERS
from pixelsail_mm.visualization import Panel, PixelVisualizer
from pixelsail_mm.visualization.colours import colour_of


@VISUALIZERS.register_module()
class BoxVisualizer(PixelVisualizer):
    """``PixelVisualizer`` with a further panel: predicted boxes in colour, true ones in white."""

    def panels(self, image: np.ndarray, sample: Any, draw_gt: bool, draw_pred: bool) -> list[Panel]:
        """See ``PixelVisualizer``."""
        panels = super().panels(image, sample, draw_gt, draw_pred)
        found = sample.get('pred_boxes') if draw_pred else None
        if found is None:
            return panels
        big = self.enlarge(image)
        picture = Image.fromarray(big)
        pen = ImageDraw.Draw(picture)
        scale = np.tile(np.array(big.shape[1::-1]) / np.array(image.shape[1::-1]), 2)
        truth = sample.get('gt_boxes') if draw_gt else None
        for box in () if truth is None else truth.cpu().numpy():
            _draw(pen, box * scale, (255, 255, 255), 3)
        for i, box in enumerate(found.cpu().numpy()):
            _draw(pen, box * scale, colour_of(i), 2)
        return [*panels, Panel('Boxes', '' if len(found) else 'no box', np.asarray(picture))]


def _draw(pen: ImageDraw.ImageDraw, box: np.ndarray, colour: tuple, width: int) -> None:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=width)
