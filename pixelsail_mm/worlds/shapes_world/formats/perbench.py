"""The test split of ShapesWorld as the three files of PerBench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.files.masks import decode_mask, mask_to_rle
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject
from pixelsail_mm.worlds.shapes_world.presets import COLOURS
from pixelsail_mm.worlds.shapes_world.questions import LETTERS, MCQ_STEMS, article

CAPTIONS, CHOICES, SEGMENTATION = (
    f'STBench_{name}.json' for name in ('Detailed_Caption', 'MCQ', 'VRES')
)


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the format's files, of the test split; see the package for the arguments.

    Captions describe every object. Questions ask the colour of every object. The segmentation asks
    for all objects that share an attribute with a marked one, in every image that has some; the
    tags are in the file in another order than in the answer.
    """
    images = [image for image in world if image.split == 'test']
    dump_json(
        [
            dict(
                image_name=image.file_name,
                object_annotations=[
                    dict(
                        segmentation=_rle(image, item),
                        caption=f'This is {article(item.description)}.',
                    )
                    for item in image.objects
                ],
            )
            for image in images
        ],
        out / CAPTIONS,
    )
    dump_json(
        [
            dict(
                image_name=image.file_name, mcqs=[_ask(image, item, rng) for item in image.objects]
            )
            for image in images
        ],
        out / CHOICES,
    )
    related = (_relate(image, rng) for image in images)
    dump_json([entry for entry in related if entry], out / SEGMENTATION)


def _rle(image: WorldImage, item: WorldObject) -> dict:
    return mask_to_rle(
        decode_mask(
            item.segmentation, image.height, image.width, image.file_name, f'object {item.ann_id}'
        )
    )


def _ask(image: WorldImage, item: WorldObject, rng: np.random.Generator) -> dict:
    right = item.attributes['colour']
    wrong = [colour for colour in COLOURS if colour != right]
    choices = [wrong[j] for j in rng.choice(len(wrong), len(LETTERS) - 1, replace=False)]
    position = int(rng.integers(len(LETTERS)))
    choices.insert(position, right)
    options = ''.join(f'{letter}. {choice}\n' for letter, choice in zip(LETTERS, choices))
    return dict(
        object=_rle(image, item),
        answer=LETTERS[position],
        question=f'{MCQ_STEMS["colour"].format(r="the object")}\n{options}',
    )


def _relate(image: WorldImage, rng: np.random.Generator) -> dict | None:
    """Entry about objects with an attribute of another object; None if there are none."""
    for name in ('colour', 'kind', 'texture'):
        for i in rng.permutation(len(image.objects)):
            shared = image.objects[i].attributes[name]
            others = [
                j
                for j, item in enumerate(image.objects)
                if item.attributes[name] == shared and j != i
            ]
            if others:
                tags = {j: f'object_{j + 1}' for j in [*reversed(others), int(i)]}
                return dict(
                    image_name=image.file_name,
                    question=f'Please segment what has the {name} of {tags[i]}.',
                    answer='It is ' + ' and '.join(tags[j] for j in others) + '.',
                    segmentations={tag: _rle(image, image.objects[j]) for j, tag in tags.items()},
                )
    return None
