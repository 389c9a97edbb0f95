"""ShapesWorld as Pix2Cap: ``pix2cap_coco_{split}.json`` and the panoptic PNGs it refers to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.worlds.shapes_world.formats.panoptic import write_segments
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject

_WORDINGS = (
    'A {x} in the {place} of the image.',
    'In the {place} of the image there is a {x}.',
    'This is a {x}; it lies in the {place}.',
)
# Of five characters, so readers leave it out, as they do with such descriptions of Pix2Cap.
TOO_SHORT = 'empty'


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the format's files of all splits; see the package for the arguments.

    Every object is described by its attributes and its place, in a drawn wording; the description
    of the background is too short to be used. The PNGs are those of :mod:`.panoptic`, so both
    formats may share a folder.
    """
    images = {image.image_id: image for image in world}
    for split, content in write_segments(world, out).items():
        for annotation in content['annotations']:
            image = images[annotation['image_id']]
            texts = [_describe(item, image, rng) for item in image.objects] + [TOO_SHORT]
            for segment, text in zip(annotation['segments_info'], texts, strict=True):
                segment['description'] = text
        dump_json(content, out / f'pix2cap_coco_{split}.json')


def _describe(item: WorldObject, image: WorldImage, rng: np.random.Generator) -> str:
    x, y, width, height = item.bbox
    row = 'upper' if 2 * y + height < image.height else 'lower'
    column = 'left' if 2 * x + width < image.width else 'right'
    wording = _WORDINGS[rng.integers(len(_WORDINGS))]
    return wording.replace('{x}', item.description).replace('{place}', f'{row} {column}')
