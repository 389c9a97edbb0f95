"""ShapesWorld as the four conversation files of Osprey-724K."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_files import load_json
from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject

_KIND, _COLOUR, _TEXTURE = 'kind', 'colour', 'texture'
Turns = Iterable[tuple[str, str]]


def objects_of(image: WorldImage) -> dict:
    """Fields about an image and its objects that every file of Osprey-724K has."""
    return dict(
        file_name=image.file_name,
        height=image.height,
        width=image.width,
        annotation=[
            dict(segmentation=item.segmentation, bbox=item.bbox, area=item.area)
            for item in image.objects
        ],
    )


def _part_turns(item: WorldObject, mark: str, rng: np.random.Generator) -> Turns:
    """What fills a shape is the nearest that ShapesWorld has to a part."""
    texture, colour = item.attributes[_TEXTURE], item.attributes[_COLOUR]
    yield f'What fills {mark}?', f'The inside of {mark} is {texture} and {colour}.'


def _short_turns(item: WorldObject, mark: str, rng: np.random.Generator) -> Turns:
    name = (_KIND, _COLOUR, _TEXTURE)[rng.integers(3)]
    word = 'shape' if name == _KIND else name
    yield f'What is the {word} of {mark}?', item.attributes[name]


def _yes_or_no_turns(
    item: WorldObject, mark: str, rng: np.random.Generator, kinds: Sequence[str]
) -> Turns:
    """A question about the right kind and one about another, in any order."""
    true = item.attributes[_KIND]
    others = [kind for kind in kinds if kind != true]
    asked = [true, others[rng.integers(len(others))]] if others else [true]
    for i in rng.permutation(len(asked)):
        yield f'Is {mark} a {asked[i]}?', 'Yes.' if asked[i] == true else 'No.'


def _entry(
    image: WorldImage, turns_of: Callable[..., Turns], rng: np.random.Generator, **options
) -> dict:
    turns = [
        turn
        for i, item in enumerate(image.objects)
        for turn in turns_of(item, f'<region{i + 1}>', rng, **options)
    ]
    conversations = [
        {'from': who, 'value': text} for turn in turns for who, text in zip(('human', 'gpt'), turn)
    ]
    return dict(objects_of(image), conversations=conversations)


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the files of the training images.

    ``osprey_conversation.json`` holds the conversations of the world itself;
    ``osprey_part_level.json``, ``osprey_short_form.json`` and
    ``osprey_lvis_positive_negative.json`` ask what fills an object, for one attribute in a word,
    and whether an object is of a kind.

    Args:
        world: The images; their ``file_name`` is written.
        root: Folder of the world, whose ``osprey`` is read.
        out: Folder to write into.
        rng: Draws attributes and kinds.
    """
    images = [image for image in world if image.split == 'train']
    conversations = load_json(str(root / 'osprey' / 'osprey_train.json'), 'root', list)
    dump_json(
        [
            dict(entry, file_name=image.file_name)
            for image, entry in zip(images, conversations, strict=True)
        ],
        out / 'osprey_conversation.json',
    )
    kinds = sorted({item.attributes[_KIND] for image in images for item in image.objects})
    for name, turns_of, options in (
        ('part_level', _part_turns, {}),
        ('short_form', _short_turns, {}),
        ('lvis_positive_negative', _yes_or_no_turns, dict(kinds=kinds)),
    ):
        dump_json(
            [_entry(image, turns_of, rng, **options) for image in images if image.objects],
            out / f'osprey_{name}.json',
        )
