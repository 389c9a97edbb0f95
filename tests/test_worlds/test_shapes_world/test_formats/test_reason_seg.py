"""ShapesWorld as ReasonSeg."""

import json

import numpy as np

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.worlds.shapes_world.formats import reason_seg
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def write(world, out, seed=0):
    images = read_world(world)
    reason_seg.write(images, world, out, np.random.default_rng(seed))
    return [
        (image, json.loads((out / image.file_name).with_suffix('.json').read_text()))
        for image in images
    ]


def test_one_file_per_image(world, tmp_path):
    entries = write(world, tmp_path)
    assert sum(path.is_file() for path in tmp_path.rglob('*')) == len(entries)
    assert {entry['is_sentence'] for _, entry in entries} == {True, False}
    labels = {shape['label'] for _, entry in entries for shape in entry['shapes']}
    assert labels == {'target', 'ignore', 'flag'}
    for image, entry in entries:
        sentences = {text for item in image.objects for text in item.sentences}
        assert entry['text'] and all(any(s in text for s in sentences) for text in entry['text'])


def test_shapes_paint_objects_exactly(world, tmp_path):
    for image, entry in write(world, tmp_path):
        true = [
            decode_mask(item.segmentation, image.height, image.width, None, 'm')
            for item in image.objects
        ]
        for label in {shape['label'] for shape in entry['shapes']} - {'flag'}:
            shapes = [shape for shape in entry['shapes'] if shape['label'] == label]
            drawn = decode_mask(dict(painted=shapes), image.height, image.width, None, 'm')
            assert sum(np.array_equal(drawn, mask) for mask in true) == 1


def test_the_seed_decides(mini_world, tmp_path):
    one, same, other = (
        write(mini_world, tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1))
    )
    assert one == same != other
