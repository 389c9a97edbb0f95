"""ShapesWorld in the ReasonSeg format: a JSON file with painted shapes for every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject

_SENTENCE = 'I am looking for {x}, which pixels should I look at?'
_IGNORE_SHARE = 0.5
_FLAG_SHARE = 0.2


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write one JSON file per image into ``out/train``, ``out/val`` and ``out/test``.

    The target of an image is one object that has sentences (no object, no file); about half of
    the images have an object to ignore. The public data set keeps images and JSON files in one
    folder; here the images stay where they are, so the reader gets both folders.

    Args:
        world: See :func:`.world.read_world`.
        root: Folder of the world; not used, the images stay in it.
        out: Folder to write into.
        rng: Draws objects, texts and shapes.
    """
    for image in world:
        named = [i for i, item in enumerate(image.objects) if item.sentences]
        if not named:
            continue
        painted = {i: _polygons(item, image) for i, item in enumerate(image.objects)}
        # Outlines paint no holes: prefer objects that they show exactly.
        exact = [i for i in named if painted[i][1]] or named
        target = exact[rng.integers(len(exact))]
        shapes = [_shape('target', points) for points in painted[target][0]]
        others = [i for i in painted if i != target and painted[i][1]]
        if others and rng.random() < _IGNORE_SHARE:
            ignored = others[rng.integers(len(others))]
            shapes += [_shape('ignore', points) for points in painted[ignored][0]]
        if rng.random() < _FLAG_SHARE:
            shapes.append(_shape('flag', [[0, 0]]))
        dump_json(
            dict(shapes=shapes, **_texts(image.objects[target], rng)),
            out / image.split / f'{Path(image.file_name).stem}.json',
        )


def _shape(label: str, points: list) -> dict:
    return dict(label=label, shape_type='polygon', points=points)


def _texts(item: WorldObject, rng: np.random.Generator) -> dict:
    if rng.random() < 0.5:
        return dict(text=list(item.sentences), is_sentence=False)
    return dict(text=[_SENTENCE.replace('{x}', text) for text in item.sentences], is_sentence=True)


def _polygons(item: WorldObject, image: WorldImage) -> tuple[list, bool]:
    """Outlines of an object, and whether painting them gives exactly its mask."""
    size = image.height, image.width
    mask = decode_mask(item.segmentation, *size, image.file_name, f'annotation {item.ann_id}')
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = [contour[:, 0].astype(float).tolist() for contour in contours]
    drawn = decode_mask(
        dict(painted=[dict(points=points) for points in outlines]),
        *size,
        image.file_name,
        'outlines',
    )
    return outlines, bool(np.array_equal(drawn, mask))
