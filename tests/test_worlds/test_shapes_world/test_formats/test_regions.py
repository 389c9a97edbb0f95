"""Region descriptions of a drawn world: what the files hold."""

import json

import numpy as np
import pytest

from pixelsail_mm.datasets.readers.sam_region import clean_caption
from pixelsail_mm.worlds.shapes_world.formats.regions import MARKED_CAPTIONS, write
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


@pytest.fixture
def written(world, tmp_path):
    images = read_world(world)
    write(images, world, tmp_path, np.random.default_rng(1))
    return images, lambda name: json.loads((tmp_path / f'{name}.json').read_text())


def test_osprey_descriptions_are_labelled_and_aligned(written):
    images, read = written
    entries = [
        e for split in ('train', 'val', 'test') for e in read(f'osprey_detail_description_{split}')
    ]
    assert [entry['file_name'] for entry in entries] == [image.file_name for image in images]
    for image, entry in zip(images, entries):
        assert len(entry['annotation']) == len(entry['description']) == len(image.objects)
        for i, (item, text) in enumerate(zip(image.objects, entry['description'])):
            assert text.startswith(f'<region{i + 1}>: A {item.description}')
            assert text.count(':') == 2


@pytest.mark.parametrize('marked, clean', MARKED_CAPTIONS)
def test_marked_captions_can_be_cleaned(marked, clean):
    for thing in ('large plain yellow star', 'small striped red ring'):
        assert clean_caption(marked.replace('{x}', thing)) == clean.replace('{x}', thing)


def test_sam_captions_mention_the_mark(written):
    images, read = written
    entries = read('sam_regions_train')
    captions = [item['caption'] for entry in entries for item in entry['object_annotations']]
    assert 0 < sum('highlight' in text for text in captions) < len(captions)
    train = [image for image in images if image.split == 'train']
    assert [len(e['object_annotations']) for e in entries] == [len(i.objects) for i in train]
    assert all(
        'counts' in item['segmentation'] for e in entries for item in e['object_annotations']
    )


def test_refcocog_regions_have_their_own_image_ids(written, tmp_path):
    images, read = written
    for split in ('val', 'test'):
        content = read(f'finetune_refcocog_{split}_with_mask')
        captions = read(f'finetune_refcocog_{split}_captions')
        files = {image['id']: image['file_name'] for image in content['images']}
        ids = [annotation['image_id'] for annotation in content['annotations']]
        assert (
            len(set(ids))
            == len(ids)
            == len(files)
            == sum(len(image.objects) for image in images if image.split == split)
        )
        assert ids != sorted(ids), 'the order of the annotations is not that of the images'
        assert {caption['image_id'] for caption in captions['annotations']} == set(ids)
        ann_ids = {item.ann_id: image.file_name for image in images for item in image.objects}
        assert all(files[a['image_id']] == ann_ids[a['id']] for a in content['annotations'])
    assert not (tmp_path / 'finetune_refcocog_train_with_mask.json').exists()
