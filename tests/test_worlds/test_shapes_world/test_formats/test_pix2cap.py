"""ShapesWorld as Pix2Cap."""

import json

import numpy as np

from pixelsail_mm.worlds.shapes_world.formats import panoptic, pix2cap
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def test_every_object_is_described_by_its_attributes_and_place(world, world_counts, tmp_path):
    images = {image.image_id: image for image in read_world(world)}
    pix2cap.write(list(images.values()), world, tmp_path, np.random.default_rng(0))
    wordings = set()
    for split, count in world_counts.items():
        content = json.loads((tmp_path / f'pix2cap_coco_{split}.json').read_text())
        assert len(content['annotations']) == len(content['images']) == count
        for annotation in content['annotations']:
            image = images[annotation['image_id']]
            assert (tmp_path / f'panoptic_{split}' / annotation['file_name']).is_file()
            *segments, background = annotation['segments_info']
            assert len(background['description']) == 5
            for item, segment in zip(image.objects, segments, strict=True):
                text = segment['description']
                assert item.description in text
                x, y, width, height = item.bbox
                assert ('left' in text) == (x + width / 2 < image.width / 2)
                assert ('upper' in text) == (y + height / 2 < image.height / 2)
                wordings.add(text.split()[0])
    assert wordings == {'A', 'In', 'This'}


def test_the_folder_can_be_shared_with_the_panoptic_format(mini_world, tmp_path):
    images = read_world(mini_world)[:4]
    rng = np.random.default_rng(0)
    panoptic.write(images, mini_world, tmp_path, rng)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*.*')}
    pix2cap.write(images, mini_world, tmp_path, rng)
    assert all(path.read_bytes() == content for path, content in before.items())
    ours, theirs = (
        json.loads((tmp_path / f'{name}_train.json').read_text())['annotations']
        for name in ('pix2cap_coco', 'panoptic')
    )
    for a, b in zip(ours, theirs, strict=True):
        assert [s['id'] for s in a['segments_info']] == [s['id'] for s in b['segments_info']]


def test_wordings_depend_on_the_generator_only(mini_world, tmp_path):
    images = read_world(mini_world)
    texts = []
    for folder, seed in (('a', 0), ('b', 0), ('c', 1)):
        pix2cap.write(images, mini_world, tmp_path / folder, np.random.default_rng(seed))
        texts.append((tmp_path / folder / 'pix2cap_coco_train.json').read_text())
    assert texts[0] == texts[1] != texts[2]
