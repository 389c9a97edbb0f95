"""ShapesWorld as region descriptions: Osprey's detailed ones, SAM-like ones and RefCOCOg's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.worlds.shapes_world.formats.gcg import object_rle, relation
from pixelsail_mm.worlds.shapes_world.formats.osprey import objects_of
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage
from pixelsail_mm.worlds.shapes_world.presets import SPLITS

# A caption that mentions the mark around the region, and what is left without the mention.
MARKED_CAPTIONS = (
    ('The highlighted object is a {x}.', 'The object is a {x}.'),
    ('A {x} with a yellow outline.', 'A {x}.'),
    ('The object, which is highlighted by a yellow contour, is a {x}.', 'The object is a {x}.'),
    ('A {x}. It is highlighted with a yellow edge.', 'A {x}.'),
    ('There is a {x} in this part.', 'There is a {x} in this part.'),
)


def describe_object(image: WorldImage, index: int) -> str:
    """Detailed description of an object: looks, a neighbour and, after a colon, its traits."""
    item = image.objects[index]
    text = f'A {item.description}'
    others = (other for i, other in enumerate(image.objects) if i != index)
    placed = ((relation(item, other), other) for other in others)
    where, other = next((pair for pair in placed if pair[0]), (None, None))
    if where:
        text += f', {where} a {other.description}'
    return f'{text}. Its traits: {", ".join(item.attributes.values())}.'


def _osprey(images: Sequence[WorldImage]) -> list[dict]:
    return [
        dict(
            objects_of(image),
            description=[
                f'<region{i + 1}>: {describe_object(image, i)}' for i in range(len(image.objects))
            ],
        )
        for image in images
    ]


def _sam(images: Sequence[WorldImage], rng: np.random.Generator) -> list[dict]:
    entries = []
    for image in images:
        objects = []
        for i, item in enumerate(image.objects):
            marked, _ = MARKED_CAPTIONS[rng.integers(len(MARKED_CAPTIONS))]
            objects.append(
                dict(
                    segmentation=object_rle(image, i),
                    caption=marked.replace('{x}', item.description),
                )
            )
        entries.append(dict(image_name=image.file_name, object_annotations=objects))
    return entries


def _refcocog(images: Sequence[WorldImage], rng: np.random.Generator) -> tuple[dict, dict]:
    """COCO files in which every region has an image id of its own; annotations are shuffled."""
    regions = [(image, item) for image in images for item in image.objects]
    entries, annotations, captions = [], [], []
    for number, (image, item) in enumerate(regions):
        image_id = 1000 + number
        phrases = [f'a {item.description}', *item.sentences]
        entries.append(
            dict(
                id=image_id,
                file_name=image.file_name,
                height=image.height,
                width=image.width,
                caption=phrases[0],
            )
        )
        annotations.append(
            dict(
                id=item.ann_id,
                image_id=image_id,
                category_id=1,
                iscrowd=0,
                bbox=item.bbox,
                area=item.area,
                segmentation=item.segmentation,
            )
        )
        captions += [
            dict(id=len(captions) + i, image_id=image_id, caption=phrase)
            for i, phrase in enumerate(phrases, 1)
        ]
    annotations = [annotations[i] for i in rng.permutation(len(annotations))]
    categories = [dict(id=1, name='object')]
    return (
        dict(images=entries, annotations=annotations, categories=categories),
        dict(images=[dict(id=entry['id']) for entry in entries], annotations=captions),
    )


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the region files of every split.

    ``osprey_detail_description_{split}.json``, ``sam_regions_{split}.json`` and, for validation
    and test, ``finetune_refcocog_{split}_with_mask.json`` with its
    ``finetune_refcocog_{split}_captions.json``.

    Args:
        world: The images.
        root: Folder of the world; the readers take the images from its folder ``images``.
        out: Folder to write into.
        rng: Draws the wording of captions and the order of annotations.
    """
    for split in SPLITS:
        images = [image for image in world if image.split == split]
        dump_json(_osprey(images), out / f'osprey_detail_description_{split}.json')
        dump_json(_sam(images, rng), out / f'sam_regions_{split}.json')
        if split != 'train':
            masks, captions = _refcocog(images, rng)
            dump_json(masks, out / f'finetune_refcocog_{split}_with_mask.json')
            dump_json(captions, out / f'finetune_refcocog_{split}_captions.json')
