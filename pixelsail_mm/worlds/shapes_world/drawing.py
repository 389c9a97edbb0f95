"""Rasterise single shapes and backgrounds for ShapesWorld."""

from __future__ import annotations

import cv2
import numpy as np

from pixelsail_mm.worlds.shapes_world.presets import COLOURS

SUPERSAMPLE = 4
_DARK = 0.42
_OUTLINE = 0.30


def _arc(
    start: float, stop: float, radius: float = 1.0, centre: tuple = (0.0, 0.0), points: int = 32
) -> np.ndarray:
    angles = np.linspace(start, stop, points)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radius + np.asarray(centre)


def _star() -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.46)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], 1) / 16.0


def _crescent() -> np.ndarray:
    outer = _arc(np.radians(50), np.radians(310))
    tip = outer[0]
    centre = np.array([0.55, 0.0])
    radius = float(np.hypot(*(tip - centre)))
    angle = float(np.arctan2(tip[1], tip[0] - centre[0]))
    inner = _arc(2 * np.pi - angle, angle, radius, centre)
    return np.concatenate([outer, inner]) + [0.2, 0.0]


def _cross(arm: float = 0.34) -> np.ndarray:
    return np.array(
        [
            [-arm, -1],
            [arm, -1],
            [arm, -arm],
            [1, -arm],
            [1, arm],
            [arm, arm],
            [arm, 1],
            [-arm, 1],
            [-arm, arm],
            [-1, arm],
            [-1, -arm],
            [-arm, -arm],
        ]
    )


# Unit outlines, y down. Several parts of one shape fill by the even-odd rule (the ring's hole).
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    'circle': (_arc(0, 2 * np.pi),),
    'square': (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.86,),
    'triangle': (np.array([[0, -1.08], [1.06, 0.84], [-1.06, 0.84]]),),
    'star': (_star(),),
    'cross': (_cross(),),
    'heart': (_heart(),),
    'ring': (_arc(0, 2 * np.pi), _arc(0, 2 * np.pi, 0.52)),
    'diamond': (np.array([[0, -1.12], [0.7, 0], [0, 1.12], [-0.7, 0]]),),
    'crescent': (_crescent(),),
    'arrow': (
        np.array(
            [
                [-1.05, -0.32],
                [0.1, -0.32],
                [0.1, -0.85],
                [1.05, 0],
                [0.1, 0.85],
                [0.1, 0.32],
                [-1.05, 0.32],
            ]
        ),
    ),
}
# Shapes whose orientation is part of their look keep nearly upright, others turn freely.
_MAX_TURN = {
    'square': 15,
    'diamond': 12,
    'cross': 15,
    'triangle': 20,
    'heart': 25,
    'crescent': 40,
    'arrow': 180,
}


def shape_coverage(
    kind: str, centre: tuple[float, float], radius: float, angle: float, size: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Antialiased coverage of one shape inside its bounding window.

    Args:
        kind: Key of :data:`OUTLINES`.
        centre: (x, y) in pixels.
        radius: Radius in pixels.
        angle: Rotation in degrees.
        size: Side of the square image in pixels.

    Returns:
        The window as two slices (rows, columns), the covered share of each pixel of the window
        and the share covered by the shape's outline, both float32 (h, w) in [0, 1].
    """
    reach = radius * 1.3 + 1
    left, top = (max(int(np.floor(c - reach)), 0) for c in centre)
    right, bottom = (min(int(np.ceil(c + reach)), size) for c in centre)
    turn = np.radians(angle)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    offset = np.array([centre[0] - left, centre[1] - top])
    parts = [
        np.round((part @ rotation * radius + offset) * SUPERSAMPLE).astype(np.int32)
        for part in OUTLINES[kind]
    ]
    shape = ((bottom - top) * SUPERSAMPLE, (right - left) * SUPERSAMPLE)
    fill, edge = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    cv2.fillPoly(fill, parts, 255)
    cv2.polylines(edge, parts, True, 255, thickness=3)
    small = (right - left, bottom - top)
    fill = cv2.resize(fill, small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    edge = cv2.resize(edge, small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return (slice(top, bottom), slice(left, right)), fill, edge


def random_angle(kind: str, rng: np.random.Generator) -> float:
    """Rotation in degrees that keeps ``kind`` recognisable."""
    limit = _MAX_TURN.get(kind, 36)
    return float(rng.uniform(-limit, limit))


def texture_pattern(
    texture: str, window: tuple[slice, slice], radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Share of the dark tone in each pixel of the window, float32 (h, w) in [0, 1]."""
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    cols = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :]
    if texture == 'plain':
        return np.zeros((rows.size, cols.size), np.float32)
    period = float(np.clip(radius * rng.uniform(0.50, 0.62), 4.6, 9.0))
    phase_x, phase_y = rng.uniform(0, period, 2)
    if texture == 'striped':
        angle = rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi / period * (cols * np.cos(angle) + rows * np.sin(angle) + phase_x))
        return np.clip(wave * 2 + 0.5, 0, 1).astype(np.float32)
    wave_x = np.sin(2 * np.pi / period * (cols + phase_x))
    wave_y = np.sin(2 * np.pi / period * (rows + phase_y))
    if texture == 'dotted':
        return np.clip((wave_x + wave_y) * 2 - 1.4, 0, 1).astype(np.float32)
    if texture == 'checkered':
        return np.clip(wave_x * wave_y * 4 + 0.5, 0, 1).astype(np.float32)
    raise ValueError(f'unknown texture {texture!r}')


def paint_shape(
    image: np.ndarray,
    window: tuple[slice, slice],
    fill: np.ndarray,
    edge: np.ndarray,
    pattern: np.ndarray,
    colour: str,
    rng: np.random.Generator,
) -> None:
    """Blend one shape into ``image`` (float32 (H, W, 3)) in place."""
    base = np.clip(np.asarray(COLOURS[colour], np.float32) + rng.uniform(-12, 12, 3), 0, 255)
    tone = 1 - pattern * (1 - _DARK)
    tone = tone * (1 - edge) + _OUTLINE * edge
    colours = base[None, None].astype(np.float32) * tone[..., None]
    alpha = fill[..., None]
    image[window] += (colours - image[window]) * alpha


def draw_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Muted background, float32 (size, size, 3): flat, gradient, noise or soft stripes."""
    base = rng.uniform(105, 185) + rng.uniform(-14, 14, 3)
    rows, cols = np.mgrid[0:size, 0:size].astype(np.float32) / size
    style = rng.choice(['flat', 'gradient', 'noise', 'stripes'])
    shade = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    axis = cols * np.cos(angle) + rows * np.sin(angle)
    if style == 'gradient':
        shade = (axis - axis.mean()) * rng.uniform(30, 60)
    elif style == 'noise':
        coarse = rng.normal(0, 1, (max(size // 8, 2),) * 2).astype(np.float32)
        shade = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) * 11
    elif style == 'stripes':
        shade = np.sin(axis * 2 * np.pi * rng.uniform(3, 7)) * rng.uniform(6, 13)
    image = base[None, None] + shade[..., None] + rng.normal(0, 2.5, (size, size, 1))
    return image.astype(np.float32)
