"""ShapesWorld as COCO panoptic segmentation."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.coco_panoptic import load_coco_panoptic_names
from pixelsail_mm.worlds.shapes_world.formats import panoptic
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


@pytest.fixture
def written(world, tmp_path):
    """The world, the folder written, and per split (JSON content, pixels by PNG name)."""
    images = read_world(world)
    panoptic.write(images, world, tmp_path, np.random.default_rng(0))
    splits = {}
    for split in ('train', 'val', 'test'):
        pixels = {}
        for path in (tmp_path / f'panoptic_{split}').iterdir():
            rgb = np.array(Image.open(path)).astype(int)
            pixels[path.name] = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        splits[split] = json.loads((tmp_path / f'panoptic_{split}.json').read_text()), pixels
    return images, splits


def test_every_image_of_every_split_is_there(written, world_counts):
    images, splits = written
    for split, (content, pixels) in splits.items():
        assert len(content['images']) == len(content['annotations']) == world_counts[split]
        assert set(pixels) == {a['file_name'] for a in content['annotations']}
        assert [image['file_name'] for image in content['images']] == [
            image.file_name for image in images if image.split == split
        ]


def test_pixels_segments_and_objects_agree(written):
    images, splits = written
    by_id = {image.image_id: image for image in images}
    num_unlabelled = 0
    for content, pixels in splits.values():
        for annotation in content['annotations']:
            image, ids = by_id[annotation['image_id']], pixels[annotation['file_name']]
            segments = annotation['segments_info']
            assert {segment['id'] for segment in segments} == set(np.unique(ids)) - {0}
            assert len({segment['id'] for segment in segments}) == len(image.objects) + 1
            assert {s['id']: s['area'] for s in segments} == {
                k: n for k, n in Counter(ids.ravel().tolist()).items() if k
            }
            for item, segment in zip(image.objects, segments):
                mask = decode_mask(item.segmentation, image.height, image.width, None, 'm')
                assert (mask == (ids == segment['id'])).all()
                rows, columns = np.nonzero(mask)
                assert segment['bbox'][:2] == [columns.min(), rows.min()]
            num_unlabelled += (ids == 0).any()
    assert num_unlabelled > 0.5 * len(images)


def test_things_are_kinds_and_stuff_is_the_background(written):
    _, splits = written
    for content, _ in splits.values():
        names = {c['id']: c['name'] for c in content['categories']}
        assert not set(names) & set(load_coco_panoptic_names())
        stuff = [c['name'] for c in content['categories'] if not c['isthing']]
        assert stuff == ['background']
        for annotation in content['annotations']:
            classes = [names[s['category_id']] for s in annotation['segments_info']]
            assert classes.count('background') == 1 and classes[-1] == 'background'


def test_writing_again_gives_the_same_bytes(mini_world, tmp_path):
    images = read_world(mini_world)[:3]
    for i, folder in enumerate(('a', 'b')):
        panoptic.write(images, mini_world, tmp_path / folder, np.random.default_rng(i))
    files = [path.relative_to(tmp_path / 'a') for path in (tmp_path / 'a').rglob('*.*')]
    assert len(files) == 6
    assert all(
        (tmp_path / 'a' / f).read_bytes() == (tmp_path / 'b' / f).read_bytes() for f in files
    )


@given(st.sets(st.integers(1, (1 << 24) - 1), min_size=2, max_size=50))
def test_segment_ids_are_distinct_and_fit_a_pixel(numbers):
    ids = {panoptic.segment_of(number) for number in numbers}
    assert len(ids) == len(numbers) and min(ids) > 0 and max(ids) < 1 << 24
