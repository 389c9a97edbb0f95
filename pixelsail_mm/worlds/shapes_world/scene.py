"""Scenes of textured shapes with occlusion: layout, drawing and visible masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pixelsail_mm.worlds.shapes_world.drawing import (
    draw_background,
    paint_shape,
    random_angle,
    shape_coverage,
    texture_pattern,
)
from pixelsail_mm.worlds.shapes_world.presets import Preset

ATTRIBUTES = ('size', 'texture', 'colour', 'kind')
_PLACEMENT_TRIES = 60
_LAYOUT_TRIES = 200


@dataclass(frozen=True)
class SceneObject:
    """One object as it is seen.

    Attributes:
        kind: Shape name.
        colour: Colour name.
        texture: Texture name.
        size: Size name.
        centroid: (x, y) of the visible pixels.
        area: Number of visible pixels.
        extent: Longer side of the visible bounding box in pixels.
        mask: Visible mask, bool (H, W).
    """

    kind: str
    colour: str
    texture: str
    size: str
    centroid: tuple[float, float]
    area: int
    extent: int
    mask: np.ndarray

    @classmethod
    def from_mask(cls, attributes: dict[str, str], mask: np.ndarray) -> SceneObject:
        """Measure a visible mask, bool (H, W) with at least one pixel."""
        rows, cols = np.nonzero(mask)
        extent = int(max(np.ptp(rows), np.ptp(cols)) + 1)
        return cls(
            **attributes,
            centroid=(float(cols.mean()), float(rows.mean())),
            area=int(rows.size),
            extent=extent,
            mask=mask,
        )


@dataclass(frozen=True)
class Scene:
    """An image with its objects.

    Attributes:
        image: RGB uint8 (H, W, 3).
        objects: Objects in drawing order, the last one on top; visible masks are disjoint.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]

    @property
    def size(self) -> int:
        """Side of the square image in pixels."""
        return self.image.shape[0]


def draw_scene(preset: Preset, rng: np.random.Generator) -> Scene:
    """Draw one scene. A crowded layout that does not fit is given up and drawn anew.

    Args:
        preset: Vocabulary and sizes.
        rng: Source of all randomness.

    Raises:
        RuntimeError: No layout fits; the preset asks for too many or too large objects.
    """
    for _ in range(_LAYOUT_TRIES):
        looks = _draw_attributes(preset, rng)
        layout = _place(looks, preset, rng)
        if layout is not None:
            return _render(layout, preset, rng)
    raise RuntimeError(
        f'preset {preset.name!r}: no layout in {_LAYOUT_TRIES} fits; lower '
        'num_objects, radii, min_visible or min_visible_area'
    )


def _draw_attributes(preset: Preset, rng: np.random.Generator) -> list[dict[str, str]]:
    choices = dict(
        size=tuple(preset.radii), texture=preset.textures, colour=preset.colours, kind=preset.kinds
    )
    count = int(rng.integers(preset.num_objects[0], preset.num_objects[1] + 1))
    looks: list[dict[str, str]] = []
    while len(looks) < count:
        if looks and rng.random() < preset.distractor_prob:
            look = dict(looks[rng.integers(len(looks))])
            variable = [name for name in preset.spoken if len(choices[name]) > 1]
            name = variable[rng.integers(len(variable))]
            look[name] = str(rng.choice([v for v in choices[name] if v != look[name]]))
        else:
            look = {name: str(rng.choice(values)) for name, values in choices.items()}
        looks.append(look)
    return looks


@dataclass
class _Placed:
    look: dict[str, str]
    radius: float
    window: tuple[slice, slice]
    fill: np.ndarray
    edge: np.ndarray
    full_area: int
    visible: np.ndarray


def _place(
    looks: list[dict[str, str]], preset: Preset, rng: np.random.Generator
) -> list[_Placed] | None:
    size = preset.image_size
    floor = preset.min_visible_area * size * size
    placed: list[_Placed] = []
    for look in looks:
        for _ in range(_PLACEMENT_TRIES):
            radius = float(rng.uniform(*preset.radii[look['size']])) * size
            centre = tuple(rng.uniform(radius * 1.02, size - radius * 1.02, 2))
            window, fill, edge = shape_coverage(
                look['kind'], centre, radius, random_angle(look['kind'], rng), size
            )
            mask = np.zeros((size, size), bool)
            mask[window] = fill > 0.5
            remaining = [other.visible & ~mask for other in placed]
            if all(
                rest.sum() >= max(floor, preset.min_visible * other.full_area)
                for rest, other in zip(remaining, placed)
            ):
                break
        else:
            return None
        for other, rest in zip(placed, remaining):
            other.visible = rest
        placed.append(_Placed(look, radius, window, fill, edge, int(mask.sum()), mask))
    if any(item.visible.sum() < floor for item in placed):
        return None
    return placed


def _render(layout: list[_Placed], preset: Preset, rng: np.random.Generator) -> Scene:
    canvas = draw_background(preset.image_size, rng)
    for item in layout:
        pattern = texture_pattern(item.look['texture'], item.window, item.radius, rng)
        paint_shape(canvas, item.window, item.fill, item.edge, pattern, item.look['colour'], rng)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return Scene(image, tuple(SceneObject.from_mask(i.look, i.visible) for i in layout))
