"""A drawn world read back from its files."""

import numpy as np

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.worlds.shapes_world.expressions import parse
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def test_images_objects_and_groups(world, world_counts):
    images = read_world(world)
    assert len(images) == sum(world_counts.values())
    assert {
        split: sum(image.split == split for image in images) for split in world_counts
    } == world_counts
    for image in images:
        assert (world / 'images' / image.file_name).is_file()
        masks = [
            decode_mask(o.segmentation, image.height, image.width, None, 'm') for o in image.objects
        ]
        assert [int(mask.sum()) for mask in masks] == [o.area for o in image.objects]
        assert sum(masks).max() == 1
        assert all(o.description.split() == list(o.attributes.values()) for o in image.objects)


def test_sentences_belong_to_their_objects(world):
    sentences = [
        (o, text) for image in read_world(world) for o in image.objects for text in o.sentences
    ]
    assert len(sentences) > 50
    for item, text in sentences:
        named = parse(text).target.named
        assert all(item.attributes[name] in text for name in named)


def test_groups_name_several_objects_of_training_images(world):
    images = read_world(world)
    assert all(not image.groups for image in images if image.split != 'train')
    groups = [(image, group) for image in images for group in image.groups]
    assert groups
    assert all(0 <= i < len(image.objects) for image, group in groups for i in group.members)
    assert np.mean([len(group.members) for _, group in groups]) > 1
