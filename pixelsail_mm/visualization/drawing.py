"""Masks and visual prompts on top of an image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pixelsail_mm.visualization.colours import PAPER, Colour, ink_on
from pixelsail_mm.visualization.text import font

# Below this long side, pixels are enlarged as squares: smoothing would blur a mask's staircase.
PIXEL_ART_SIDE = 160


def fit(image: np.ndarray, smallest: int, largest: int) -> np.ndarray:
    """Resize an image so that its long side lies between two bounds.

    Tiny images grow by a whole factor with square pixels, others smoothly.

    Args:
        image: uint8 ``(H, W, 3)``.
        smallest: Lower bound in pixels; reached or exceeded.
        largest: Upper bound in pixels; wins over the lower one.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if smallest <= side <= largest:
        return image
    if side <= PIXEL_ART_SIDE:
        factor = min(-(-smallest // side), max(largest // side, 1))
        return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    scale = (largest if side > largest else smallest) / side
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def fit_masks(masks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize bool masks ``(n, H, W)`` to ``shape``; a mask never vanishes by shrinking."""
    if masks.shape[1:] == shape or len(masks) == 0:
        return np.zeros((0, *shape), bool) if len(masks) == 0 else masks
    shrinks = masks.shape[1] > shape[0]
    # INTER_NEAREST would take the pixel at the top left and shift the mask against the image.
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST_EXACT
    resized = []
    for mask in masks:
        covered = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=mode)
        kept = covered > (0.5 if shrinks else 0)
        resized.append(kept if kept.any() else covered > 0)
    return np.stack(resized)


def draw_masks(
    image: np.ndarray, masks: np.ndarray, colours: Sequence[Colour], alpha: float, dim: float
) -> np.ndarray:
    """Fade the image to grey outside the masks, tint it inside and outline each mask.

    Args:
        image: uint8 ``(H, W, 3)``.
        masks: bool ``(n, H, W)`` of the same size.
        colours: One per mask.
        alpha: Strength of the tint in 0..1.
        dim: How far the rest fades, in 0..1.
    """
    picture = image.astype(np.float32)
    if masks.any():
        outside = ~masks.any(axis=0)
        grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.5 + 128 * 0.5
        picture[outside] = (1 - dim) * picture[outside] + dim * grey[outside]
    for mask, colour in zip(masks, colours):
        picture[mask] = (1 - alpha) * picture[mask] + alpha * np.array(colour, np.float32)
    picture = picture.round().astype(np.uint8)
    for mask, colour in zip(masks, colours):
        outline(picture, mask, colour)
    return picture


def outline(picture: np.ndarray, mask: np.ndarray, colour: Colour, thickness: int = 2) -> None:
    """Outline a mask in place: a coloured line with a white halo, visible on any background."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, PAPER, thickness + 3, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)


def draw_prompts(
    image: np.ndarray,
    masks: np.ndarray,
    points: Sequence[tuple[int, int] | None],
    colours: Sequence[Colour],
    labels: Sequence[str],
) -> np.ndarray:
    """Outline visual prompts and name them; their inside keeps its colour.

    Args:
        image: uint8 ``(H, W, 3)``.
        masks: bool ``(P, H, W)``, large to small.
        points: ``(x, y)`` of prompts that are a single pixel, else ``None``.
        colours: One per prompt.
        labels: One per prompt.
    """
    picture = image.copy()
    radius = max(5, round(max(image.shape) / 45))
    for mask, point, colour in zip(masks, points, colours):
        if point is None:
            outline(picture, mask, colour)
        else:
            cv2.circle(picture, point, radius + 3, PAPER, -1, cv2.LINE_AA)
            cv2.circle(picture, point, radius, colour, -1, cv2.LINE_AA)
    canvas = Image.fromarray(picture)
    taken: list[tuple] = []
    for mask, point, colour, label in zip(masks, points, colours, labels):
        if point is not None:
            anchor = (point[0], point[1] - radius - 4)
        else:
            rows, columns = np.nonzero(mask)
            anchor = (int(columns.mean()), int(rows.min())) if len(rows) else (0, 0)
        draw_chip(canvas, anchor, label, colour, taken)
    return np.asarray(canvas)


def draw_numbers(image: np.ndarray, masks: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Write 1, 2, ... into the masks, each at the point farthest from its mask's border."""
    canvas = Image.fromarray(image)
    taken: list[tuple] = []
    for number, (mask, colour) in enumerate(zip(masks, colours), start=1):
        if mask.any():
            depth = cv2.distanceTransform(
                np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            draw_chip(canvas, (int(column), int(row) + 10), str(number), colour, taken)
    return np.asarray(canvas)


def draw_chip(
    canvas: Image.Image,
    anchor: tuple[int, int],
    label: str,
    colour: Colour,
    taken: list[tuple],
    size: int = 14,
) -> None:
    """Put a label above ``anchor`` (bottom middle), inside the picture and clear of others.

    Args:
        canvas: RGB picture, drawn on in place.
        anchor: ``(x, y)`` in pixels.
        label: Text of the chip.
        colour: Its background.
        taken: Rectangles of earlier chips; the new one is appended.
        size: Font size in pixels.
    """
    pen = ImageDraw.Draw(canvas)
    width, height = round(font(size, True).getlength(label)) + size // 2 + 4, size + 6
    left = min(max(anchor[0] - width // 2, 1), max(canvas.width - width - 2, 0))
    top = min(max(anchor[1] - height, 1), max(canvas.height - height - 2, 0))
    for _ in range(len(taken)):
        if not any(
            left < r and x < left + width and top < b and y < top + height for x, y, r, b in taken
        ):
            break
        top = top + height + 1 if top + 2 * height < canvas.height else 1
    box = (left, top, left + width, top + height)
    taken.append(box)
    pen.rounded_rectangle(box, 4, colour, PAPER, 1)
    pen.text((left + width / 2, top + height / 2), label, ink_on(colour), font(size, True), 'mm')
