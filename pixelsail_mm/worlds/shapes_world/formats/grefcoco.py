"""ShapesWorld in the gRefCOCO format: several targets, or none, for one expression."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json, dump_refs
from pixelsail_mm.worlds.shapes_world.expressions import Expression, Filter, render
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, divide_test

# What every preset names; a combination of these is enough to say what is not there.
_ATTRIBUTES = ('colour', 'kind')
_NO_TARGET_PER_IMAGE = 2
_PICKLE_PROTOCOL = 2


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write ``instances.json`` and ``grefs(unc).json`` with a pickled copy, ``grefs(unc).p``.

    Every image has its single objects, groups of objects (those of the world, or all objects of a
    colour or kind where it has none) and expressions whose colour and kind do not occur together.

    Args:
        world: See :func:`.world.read_world`.
        root: Folder of the world; not used, ``file_name`` stays relative to its ``images``.
        out: Folder to write into.
        rng: Draws what is not there.
    """
    objects = [item for image in world for item in image.objects]
    values = [sorted({item.attributes[name] for item in objects}) for name in _ATTRIBUTES]
    categories = {kind: i for i, kind in enumerate(values[1], 1)}
    refs: list[dict] = []
    for image in world:
        for members, sentences in [*_singles(image), *_groups(image), *_absent(image, values, rng)]:
            chosen = [image.objects[i] for i in members]
            ids = [item.ann_id for item in chosen] or [-1]
            kinds = [categories[item.attributes['kind']] for item in chosen] or [-1]
            refs.append(_reference(len(refs) + 1, image, ids, kinds, sentences))
    _number_sentences(refs)
    images = [
        dict(id=image.image_id, file_name=image.file_name, height=image.height, width=image.width)
        for image in world
    ]
    annotations = [
        dict(
            id=item.ann_id,
            image_id=image.image_id,
            iscrowd=0,
            bbox=item.bbox,
            area=item.area,
            category_id=categories[item.attributes['kind']],
            segmentation=item.segmentation,
        )
        for image in world
        for item in image.objects
    ]
    dump_json(
        dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=i, name=kind) for kind, i in categories.items()],
        ),
        out / 'instances.json',
    )
    dump_json(refs, out / 'grefs(unc).json')
    # Fresh objects: pickle writes equal strings once only if they are one object.
    dump_refs(json.loads(json.dumps(refs)), out / 'grefs(unc).p')


def _singles(image: WorldImage) -> list[tuple]:
    return [((i,), item.sentences) for i, item in enumerate(image.objects) if item.sentences]


def _groups(image: WorldImage) -> list[tuple]:
    """Groups of the image with all their sentences."""
    merged: dict[tuple, list[str]] = {}
    if image.groups:
        for group in image.groups:
            merged.setdefault(group.members, []).append(group.sentence)
        return list(merged.items())
    for name in _ATTRIBUTES:
        for value in sorted({item.attributes[name] for item in image.objects}):
            members = tuple(
                i for i, item in enumerate(image.objects) if item.attributes[name] == value
            )
            if len(members) > 1:
                sentence = render(Expression(Filter(**{name: value}), plural=True))
                merged.setdefault(members, []).append(sentence)
    return list(merged.items())


def _absent(
    image: WorldImage, values: Sequence[Sequence[str]], rng: np.random.Generator
) -> list[tuple]:
    """Expressions without target."""
    present = {tuple(item.attributes[name] for name in _ATTRIBUTES) for item in image.objects}
    absent = [look for look in product(*values) if look not in present]
    drawn = rng.permutation(len(absent))[:_NO_TARGET_PER_IMAGE]
    return [((), [render(Expression(Filter(**dict(zip(_ATTRIBUTES, absent[i])))))]) for i in drawn]


def _reference(
    ref_id: int,
    image: WorldImage,
    ann_ids: list[int],
    category_ids: list[int],
    sentences: Sequence[str],
) -> dict:
    return dict(
        ref_id=ref_id,
        ann_id=ann_ids,
        image_id=image.image_id,
        category_id=category_ids,
        split=divide_test(image.split, image.image_id),
        file_name=image.file_name,
        no_target=ann_ids == [-1],
        sentences=[dict(raw=text, sent=text, tokens=text.split()) for text in sentences],
    )


def _number_sentences(refs: list[dict]) -> None:
    number = 0
    for ref in refs:
        for sentence in ref['sentences']:
            number += 1
            sentence['sent_id'] = number
        ref['sent_ids'] = [sentence['sent_id'] for sentence in ref['sentences']]
