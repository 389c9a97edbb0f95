"""ShapesWorld as COCO panoptic segmentation: ``panoptic_{split}.json`` and PNGs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage
from pixelsail_mm.worlds.shapes_world.presets import KINDS, SPLITS
from pixelsail_mm.worlds.shapes_world.segmentation import mask_bbox

# Category ids of COCO panoptic end at 200.
_FIRST_KIND = 1001
BACKGROUND_CATEGORY = 2001
BACKGROUND = 'background'
# Segments are numbered by their annotations; those of backgrounds begin here.
_FIRST_BACKGROUND = 1 << 23
# Odd, so that distinct numbers below 2^24 give distinct ids, spread over all three channels.
_SPREAD = 0x9E3779
# The lowest eighth of the background has no label, as some pixels of COCO have none.
_UNLABELLED = 8


def kind_category(kind: str) -> int:
    """Category id of a kind of shape."""
    return _FIRST_KIND + KINDS.index(kind)


def segment_of(number: int) -> int:
    """Segment id, 1 to 2^24 - 1, of a segment's number."""
    return number * _SPREAD % (1 << 24)


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the format's files of all splits; see the package for the arguments.

    Things are the kinds of shapes, the background is one segment of stuff. Nothing is drawn.
    """
    kinds = sorted(
        {item.attributes['kind'] for image in world for item in image.objects}, key=KINDS.index
    )
    categories = [
        dict(id=kind_category(kind), name=kind, supercategory='shape', isthing=1) for kind in kinds
    ]
    categories.append(
        dict(id=BACKGROUND_CATEGORY, name=BACKGROUND, supercategory=BACKGROUND, isthing=0)
    )
    for split, content in write_segments(world, out).items():
        dump_json(dict(content, categories=categories), out / f'panoptic_{split}.json')


def write_segments(world: Sequence[WorldImage], out: Path) -> dict[str, dict]:
    """Write the PNGs into ``out/panoptic_{split}``.

    Returns:
        ``images`` and ``annotations`` of every split, as the JSON file holds them. The segments of
        an image are those of its objects in their order, then its background.
    """
    contents = {split: dict(images=[], annotations=[]) for split in SPLITS}
    for image in world:
        name = f'{Path(image.file_name).stem}.png'
        path = out / f'panoptic_{image.split}' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ids, segments = _draw(image)
        Image.fromarray(
            np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
        ).save(path)
        contents[image.split]['images'].append(
            dict(
                id=image.image_id, file_name=image.file_name, height=image.height, width=image.width
            )
        )
        contents[image.split]['annotations'].append(
            dict(file_name=name, image_id=image.image_id, segments_info=segments)
        )
    return contents


def _draw(image: WorldImage) -> tuple[np.ndarray, list[dict]]:
    """Segment id of every pixel, int64 (H, W), and the ``segments_info``."""
    ids = np.zeros((image.height, image.width), np.int64)
    segments = []
    for item in image.objects:
        segment_id = segment_of(item.ann_id)
        ids[
            decode_mask(
                item.segmentation,
                image.height,
                image.width,
                image.file_name,
                f'object {item.ann_id}',
            )
        ] = segment_id
        segments.append(
            dict(
                id=segment_id,
                category_id=kind_category(item.attributes['kind']),
                iscrowd=0,
                bbox=item.bbox,
                area=item.area,
            )
        )
    background = ids == 0
    background[image.height - image.height // _UNLABELLED :] = False
    segment_id = segment_of(_FIRST_BACKGROUND + image.image_id)
    ids[background] = segment_id
    segments.append(
        dict(
            id=segment_id,
            category_id=BACKGROUND_CATEGORY,
            iscrowd=0,
            bbox=mask_bbox(background),
            area=int(background.sum()),
        )
    )
    return ids, segments
