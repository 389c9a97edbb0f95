"""Pictures of samples: image with prompts, predicted masks, true masks and the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import master_only
from mmengine.visualization import Visualizer
from PIL import Image, ImageDraw

from pixelsail_mm.registry import VISUALIZERS
from pixelsail_mm.visualization.colours import INK, MUTED, PAPER, RULE, colour_of
from pixelsail_mm.visualization.drawing import (
    draw_masks,
    draw_numbers,
    draw_prompts,
    fit,
    fit_masks,
)
from pixelsail_mm.visualization.text import TextBlock, font

MARGIN, GAP = 16, 12
# MMEngine hands out one visualizer per name, with the settings of the first.
_NUMBERS = count()


class Panel(NamedTuple):
    """One picture of the row, with a heading and a remark at its right."""

    title: str
    note: str
    picture: np.ndarray


@VISUALIZERS.register_module()
class PixelVisualizer(Visualizer):
    """Draw a sample as one picture that explains itself.

    From left to right: the image with its visual prompts, the predicted masks, the true masks
    (the latter two only where they exist); below, question, answer and true answer, in which
    ``[SEG]`` and ``<PromptK>`` are chips in the colour of their mask. The IoU of each predicted
    mask with the true mask of the same place is printed above it.

    Args:
        name: Name of the instance.
        panel_size: Smallest and largest long side of a panel in pixels. Small images are enlarged.
        alpha: Strength of the mask colour in 0..1.
        dim: How far the image fades outside the masks, in 0..1.
        font_size: Of the text below, in pixels.
        **kwargs: See :class:`mmengine.visualization.Visualizer`.
    """

    def __init__(
        self,
        name: str = 'visualizer',
        panel_size: tuple[int, int] = (320, 512),
        alpha: float = 0.5,
        dim: float = 0.6,
        font_size: int = 16,
        **kwargs,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.panel_size = tuple(panel_size)
        self.alpha = alpha
        self.dim = dim
        self.font_size = font_size

    def draw(
        self,
        image: np.ndarray | None,
        data_sample: Any,
        draw_gt: bool = True,
        draw_pred: bool = True,
    ) -> np.ndarray:
        """Draw one sample.

        Args:
            image: uint8 RGB ``(H, W, 3)`` at the size of the masks, ``None`` for text only.
            data_sample: :class:`~pixelsail_mm.structures.PixelDataSample`, or any element with
                some of its fields.
            draw_gt: Draw true masks and true answer.
            draw_pred: Draw predicted masks and answer.

        Returns:
            uint8 RGB picture.

        Raises:
            ValueError: The image is not uint8 ``(H, W, 3)`` or a mask has another size.
        """
        panels = []
        if image is not None:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    'PixelVisualizer: image must be uint8 RGB of shape (H, W, 3), got '
                    f'{image.dtype} {image.shape}'
                )
            panels = self.panels(image, data_sample, draw_gt, draw_pred)
        fields = [
            ('Question', data_sample.get('question'), True),
            ('Answer', data_sample.get('pred_text'), draw_pred),
            ('Truth', _truth(data_sample), draw_gt),
        ]
        texts = [(label, text) for label, text, wanted in fields if wanted and text is not None]
        return self._compose(panels, texts)

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray | None,
        data_sample: Any = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | Path | None = None,
        step: int = 0,
    ) -> None:
        """Draw one sample and show it, write it to a file or hand it to the backends.

        Image, sample and what to draw: see :meth:`draw`; the others: see
        :meth:`mmengine.visualization.Visualizer.add_datasample`. The folder of ``out_file`` is
        created; without ``out_file`` the picture goes to the visualization backends.
        """
        picture = self.draw(image, data_sample, draw_gt, draw_pred)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            Path(out_file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(out_file)
        else:
            self.add_image(name, picture, step)

    def panels(self, image: np.ndarray, sample: Any, draw_gt: bool, draw_pred: bool) -> list[Panel]:
        """Make the row of pictures; a project that predicts more than masks adds its own panels.

        Arguments as for :meth:`draw`; there is an image.

        Returns:
            Panels from left to right; pictures are uint8 RGB of any size, usually that of
            :meth:`enlarge`.
        """
        truth = _masks(sample, 'gt_masks', image) if draw_gt else None
        found = _masks(sample, 'pred_masks', image) if draw_pred else None
        big = self.enlarge(image)
        panels = [Panel('Image', '', self._with_prompts(big, image, sample))]
        if found is not None and (len(found) or (truth is not None and len(truth))):
            panels.append(
                Panel('Prediction', _iou_note(found, truth), self._with_masks(big, found))
            )
        if truth is not None and len(truth):
            note = '' if truth.any() else 'no target'
            panels.append(Panel('Truth', note, self._with_masks(big, truth)))
        return panels

    def enlarge(self, image: np.ndarray) -> np.ndarray:
        """Image ``(H, W, 3)`` at the size of a panel, see ``panel_size``."""
        return fit(image, *self.panel_size)

    def _with_masks(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        colours = [colour_of(i) for i in range(len(masks))]
        masks = fit_masks(masks, image.shape[:2])
        picture = draw_masks(image, masks, colours, self.alpha, self.dim)
        return draw_numbers(picture, masks, colours) if len(masks) > 1 else picture

    def _with_prompts(self, big: np.ndarray, image: np.ndarray, sample: Any) -> np.ndarray:
        masks = _masks(sample, 'prompt_masks', image)
        if masks is None or len(masks) == 0:
            return big
        ids = np.asarray(sample.get('prompt_ids')).tolist()
        scale = np.array(big.shape[:2]) / np.array(image.shape[:2])
        points = []
        for mask in masks:
            pixels = np.argwhere(mask)
            row, column = (pixels[0] + 0.5) * scale if len(pixels) == 1 else (0, 0)
            points.append((int(column), int(row)) if len(pixels) == 1 else None)
        return draw_prompts(
            big,
            fit_masks(masks, big.shape[:2]),
            points,
            [colour_of(i) for i in ids],
            [f'Prompt{i}' for i in ids],
        )

    def _compose(self, panels: list[Panel], texts: list[tuple[str, str]]) -> np.ndarray:
        """Set panels in a row and texts below, on white."""
        size = self.font_size
        columns = [max(panel.picture.shape[1], 256) for panel in panels]
        inner = max(sum(columns) + GAP * max(len(panels) - 1, 0), 480)
        label_width = max((font(size).getlength(label) for label, _ in texts), default=0) + size
        blocks = [TextBlock(label, text, inner, size, round(label_width)) for label, text in texts]
        heading = round(size * 1.75) if panels else 0
        row = max((panel.picture.shape[0] for panel in panels), default=0)
        text_top = MARGIN + heading + row + (GAP if panels and blocks else 0)
        height = text_top + sum(block.height for block in blocks) + MARGIN
        canvas = Image.new('RGB', (inner + 2 * MARGIN, height), PAPER)
        x = MARGIN
        for panel, width in zip(panels, columns):
            self._paste(canvas, panel, x, width, heading, row)
            x += width + GAP
        y = text_top
        for block in blocks:
            block.draw(canvas, MARGIN, y)
            y += block.height
        return np.asarray(canvas)

    def _paste(
        self, canvas: Image.Image, panel: Panel, x: int, width: int, heading: int, row: int
    ) -> None:
        """Put one panel with its heading, centred in its cell."""
        pen = ImageDraw.Draw(canvas)
        middle = MARGIN + heading // 2 - 2
        pen.text((x, middle), panel.title, INK, font(self.font_size, True), 'lm')
        pen.text((x + width, middle), panel.note, MUTED, font(self.font_size), 'rm')
        top = MARGIN + heading
        pen.rectangle((x, top, x + width - 1, top + row - 1), RULE)
        height, own_width = panel.picture.shape[:2]
        canvas.paste(
            Image.fromarray(panel.picture),
            (x + (width - own_width) // 2, top + (row - height) // 2),
        )


def build_visualizer(cfg: Mapping[str, Any] | None) -> Visualizer:
    """Build the visualizer of a config, to draw answers.

    MMEngine's own, of every config for training, writes curves and draws no answers; a
    :class:`PixelVisualizer` takes its place, as where there is none. It gets no backends: who
    draws decides where the pictures go.

    Args:
        cfg: ``visualizer`` of a config; its ``name`` does not count, see :data:`_NUMBERS`.
    """
    settings = dict(type='PixelVisualizer') | dict(cfg or {})
    kind = settings['type']
    kind = VISUALIZERS.get(kind) if isinstance(kind, str) else kind
    if kind is not None and kind.add_datasample is Visualizer.add_datasample:
        settings = dict(type='PixelVisualizer')
    settings.pop('vis_backends', None)
    return VISUALIZERS.build(settings | dict(name=f'answers_{next(_NUMBERS)}'))


def _truth(sample: Any) -> str | None:
    """True answer; an empty one means that none is known."""
    return sample.get('gt_text') or sample.get('answer') or None


def _masks(sample: Any, key: str, image: np.ndarray) -> np.ndarray | None:
    """Field of the sample as bool ``(n, H, W)``, checked against the image."""
    masks = sample.get(key)
    if masks is None:
        return None
    masks = np.asarray(masks.cpu() if hasattr(masks, 'cpu') else masks) > 0
    if len(masks) and masks.shape[1:] != image.shape[:2]:
        raise ValueError(
            f'PixelVisualizer: {key} of sample {sample.get("sample_id")!r} is '
            f'{masks.shape[1:]}, the image {image.shape[:2]}'
        )
    return masks


def _iou_note(found: np.ndarray, truth: np.ndarray | None) -> str:
    """IoU per true mask, e.g. ``'IoU 0.91, 0.40'``; says so if no mask was given."""
    said = '' if len(found) else 'no mask'
    if truth is None or len(truth) == 0:
        return said
    values = []
    for i, target in enumerate(truth):
        mask = found[i] if i < len(found) else np.zeros_like(target)
        union = (mask | target).sum()
        values.append(f'{(mask & target).sum() / union:.2f}' if union else '1.00')
    return (f'{said}, ' if said else '') + 'IoU ' + ', '.join(values)
