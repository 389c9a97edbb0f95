"""A drawn ShapesWorld, read back from its files for writers of further formats."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelsail_mm.datasets.files.annotation_files import load_json
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.worlds.shapes_world.scene import ATTRIBUTES


@dataclass(frozen=True)
class WorldObject:
    """One object of an image.

    Attributes:
        ann_id: Its annotation in ``refcoco/instances.json``.
        attributes: ``size``, ``texture``, ``colour``, ``kind``.
        description: Noun phrase with all attributes, e.g. ``'large striped red star'``.
        sentences: Referring expressions that name only this object.
        segmentation: Visible mask, polygons or RLE.
        bbox: [x, y, width, height] of the visible pixels.
        area: Number of visible pixels.
    """

    ann_id: int
    attributes: dict[str, str]
    description: str
    sentences: tuple[str, ...]
    segmentation: Any
    bbox: list[int]
    area: int


@dataclass(frozen=True)
class WorldGroup:
    """Several objects that one expression names; ``members`` index the image's objects."""

    sentence: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class WorldImage:
    """One image; ``file_name`` is relative to the folder ``images``, objects bottom to top."""

    image_id: int
    file_name: str
    split: str
    height: int
    width: int
    objects: tuple[WorldObject, ...]
    groups: tuple[WorldGroup, ...]


def divide_test(split: str, image_id: int) -> str:
    """Split of a referring data set, which divides the test images into testA and testB."""
    return f'test{"AB"[image_id % 2]}' if split == 'test' else split


def read_world(root: Path) -> list[WorldImage]:
    """Read a data set that :func:`~pixelsail_mm.worlds.shapes_world.make_shapes_world` wrote.

    Args:
        root: Its folder.

    Returns:
        All images in the order of their ids. Groups exist in the training split only.

    Raises:
        FileNotFoundError: There is no such data set.
    """
    path = root / 'refcoco' / 'instances.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist; draw a ShapesWorld with '
            'tools/dataset_converters/make_shapes_world.py first'
        )
    instances = load_json(str(path), 'root', dict)
    sentences = defaultdict(list)
    for ref in load_plain_pickle(str(root / 'refcoco' / 'refs(unc).p')):
        sentences[ref['ann_id']] += [sentence['raw'] for sentence in ref['sentences']]
    objects = defaultdict(list)
    for annotation in instances['annotations']:
        objects[annotation['image_id']].append(
            _object(annotation, tuple(sentences[annotation['id']]))
        )
    groups = _read_groups(root)
    return [
        WorldImage(
            image['id'],
            image['file_name'],
            image['file_name'].split('/')[0],
            image['height'],
            image['width'],
            tuple(objects[image['id']]),
            tuple(groups[image['file_name']]),
        )
        for image in instances['images']
    ]


def _object(annotation: dict, sentences: tuple[str, ...]) -> WorldObject:
    attributes = {name: annotation['attributes'][name] for name in ATTRIBUTES}
    return WorldObject(
        ann_id=annotation['id'],
        attributes=attributes,
        description=' '.join(attributes.values()),
        sentences=sentences,
        segmentation=annotation['segmentation'],
        bbox=annotation['bbox'],
        area=annotation['area'],
    )


def _read_groups(root: Path) -> dict[str, list[WorldGroup]]:
    """Groups of every image file, one per expression."""
    instances = load_json(str(root / 'refcoco_group' / 'instances.json'), 'root', dict)
    files = {image['id']: image['file_name'] for image in instances['images']}
    members = {a['id']: tuple(a['members']) for a in instances['annotations']}
    groups = defaultdict(list)
    for ref in load_plain_pickle(str(root / 'refcoco_group' / 'refs(unc).p')):
        for sentence in ref['sentences']:
            groups[files[ref['image_id']]].append(
                WorldGroup(sentence['raw'], members[ref['ann_id']])
            )
    return groups
