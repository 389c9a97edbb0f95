"""Dense feature maps of a perfect vision expert, for distillation on ShapesWorld.

No vision expert can be downloaded behind a firewall, and a small transformer without one spends
most of its training on finding out what an object is. The maps stand in for the features of a
Mask2Former that was trained on such images: one channel per kind, colour, texture and size, one
for "there is an object", and the object's centre as two coordinates, since rotary positions alone
leave a patch to find out where in the image it is. They exist for training images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from pixelsail_mm.worlds.shapes_world.presets import COLOURS, KINDS, SIZES, TEXTURES

COORDINATES = ('column', 'row')
CHANNELS = (*KINDS, *COLOURS, *TEXTURES, *SIZES, 'object', *COORDINATES)
STRIDE = 4
# Value of a covered cell. What needs several patches to be seen speaks louder than a colour,
# which one pixel shows: with equal values the squared error of the kinds is lost in the rest.
AMPLITUDES = {
    **dict.fromkeys(KINDS, 12.0),
    **dict.fromkeys(COORDINATES, 4.0),
    **dict.fromkeys((*TEXTURES, *SIZES), 6.0),
    **dict.fromkeys((*COLOURS, 'object'), 3.0),
}
#: What one step of the stored integers is worth.
SCALE = 0.12


def expert_map(objects: Sequence[Mapping], image_size: int) -> np.ndarray:
    """Feature map of one image.

    Args:
        objects: Records with ``attributes`` and ``rle`` (visible mask).
        image_size: Side of the image in pixels, a multiple of :data:`STRIDE`.

    Returns:
        int8 ``(channels, side / STRIDE, side / STRIDE)`` in steps of :data:`SCALE`.
    """
    cells = image_size // STRIDE
    feature = np.zeros((len(CHANNELS), cells, cells), np.float32)
    for item in objects:
        mask = coco_mask.decode(item['rle']).astype(np.float32)
        mask = mask[: cells * STRIDE, : cells * STRIDE]
        cover = mask.reshape(cells, STRIDE, cells, STRIDE).mean((1, 3))
        for name in (*item['attributes'].values(), 'object'):
            feature[CHANNELS.index(name)] += cover
        for name, positions in zip(COORDINATES, np.nonzero(mask)[::-1]):
            centre = 2 * (positions.mean() + 0.5) / image_size - 1  # -1 left or top, 1 opposite
            feature[CHANNELS.index(name)] += centre * cover
    values = np.array([AMPLITUDES[name] for name in CHANNELS], np.float32)[:, None, None]
    return np.rint(feature.clip(-1, 1) * values / SCALE).astype(np.int8)


def write_expert_map(path: Path, objects: Sequence[Mapping], image_size: int) -> None:
    """Write a map as ``CachedExpert`` reads it: arrays ``feature`` (int8) and ``scale``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, feature=expert_map(objects, image_size), scale=np.float32(SCALE))
