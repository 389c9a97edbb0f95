"""ShapesWorld as RefCOCO, RefCOCO+ and RefCOCOg, with the splits of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_files import load_json
from pixelsail_mm.datasets.files.annotation_writer import dump_json, dump_refs
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, divide_test


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the folders ``refcoco``, ``refcoco+`` and ``refcocog``; nothing is drawn.

    RefCOCO and RefCOCO+ divide the test images into testA and testB (here: by turns). RefCOCO+ has
    no words of place, so only sentences about attributes stay.

    Args:
        world: The images; their ``file_name`` is written.
        root: Folder of the world, whose ``refcoco`` is read.
        out: Folder to write into.
        rng: Not used.
    """
    instances = load_json(str(root / 'refcoco' / 'instances.json'), 'root', dict)
    refs = load_plain_pickle(str(root / 'refcoco' / 'refs(unc).p'))
    names = {image.image_id: image.file_name for image in world}
    instances['images'] = [
        dict(image, file_name=names[image['id']]) for image in instances['images']
    ]
    refs = [dict(ref, file_name=names[ref['image_id']]) for ref in refs]
    divided = [dict(ref, split=divide_test(ref['split'], ref['image_id'])) for ref in refs]
    attributes = [kept for ref in divided if (kept := _only_attributes(ref))['sentences']]
    for folder, name, content in (
        ('refcoco', 'refs(unc).p', divided),
        ('refcoco+', 'refs(unc).p', attributes),
        ('refcocog', 'refs(umd).p', refs),
    ):
        dump_json(instances, out / folder / 'instances.json')
        dump_refs(content, out / folder / name)


def _only_attributes(ref: dict) -> dict:
    sentences = [sentence for sentence in ref['sentences'] if sentence['kind'] == 'attribute']
    return dict(ref, sentences=sentences, sent_ids=[sentence['sent_id'] for sentence in sentences])
