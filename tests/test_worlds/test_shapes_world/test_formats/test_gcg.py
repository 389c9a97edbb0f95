"""Grounded captions of a drawn world: what the layouts hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.worlds.shapes_world.formats.gcg import (
    compose_caption,
    object_rle,
    relation,
    write,
)
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

HOLDS = {
    'left of': lambda a, b: a[1] < b[1],
    'right of': lambda a, b: a[1] > b[1],
    'above': lambda a, b: a[0] < b[0],
    'below': lambda a, b: a[0] > b[0],
}


@pytest.fixture
def written(world, tmp_path):
    images = read_world(world)
    write(images, world, tmp_path, np.random.default_rng(1))
    return images, lambda name: json.loads((tmp_path / f'annotations/{name}.json').read_text())


def mask(image, index):
    return decode_mask(image.objects[index].segmentation, image.height, image.width, None, 'm')


def test_spans_of_captions_are_exact(world):
    rng = np.random.default_rng(0)
    for image in read_world(world):
        caption = compose_caption(image, rng)
        groups = {group.sentence: group.members for group in image.groups}
        for start, end, members in caption.spans:
            phrase = caption.text[start:end]
            if phrase in groups:
                assert members == groups[phrase]
            else:
                assert phrase.lower() == f'a {image.objects[members[0]].description}'
        assert [s for s, _, _ in caption.spans] == sorted(s for s, _, _ in caption.spans)
        assert caption.text == caption.text.strip() and caption.text.endswith('.')


def test_relations_are_true(world):
    said = 0
    for image in read_world(world):
        for i, one in enumerate(image.objects):
            for j, other in enumerate(image.objects):
                where = relation(one, other)
                if where and i != j:
                    centres = [np.argwhere(mask(image, k)).mean(0) for k in (i, j)]
                    assert HOLDS[where](*centres)
                    said += 1
    assert said > 100


def test_run_lengths_are_the_objects(world):
    for image in read_world(world)[:5]:
        for i in range(len(image.objects)):
            decoded = decode_mask(object_rle(image, i), image.height, image.width, None, 'm')
            assert (decoded == mask(image, i)).all()


def test_every_split_of_every_layout(written, world_counts):
    _, read = written
    for split, count in world_counts.items():
        for name in ('RefCOCOg_GCG', 'GranDf_HA_GCG', 'OpenPsgGCG'):
            assert len(read(f'{name}_{split}')) == count
        assert len(read(f'flickr_mergedGT_GCG_{split}')['images']) == count
    assert read('OpenPsgGCG_train') != read('GranDf_HA_GCG_train'), 'drawn anew'


def test_positions_of_grandf_count_the_quotes(written):
    _, read = written
    entries = read('GranDf_HA_GCG_train')
    assert {entry['caption'][0] == '"' for entry in entries} == {True, False}
    for entry in entries:
        assert entry['groundings'].pop('picture') is None
        for phrase, grounding in entry['groundings'].items():
            assert entry['caption'][slice(*grounding['token_positives'])] == phrase
    assert max(len(g['rle_masks']) for e in entries for g in e['groundings'].values()) > 1


def test_refcocog_has_capitals_and_a_sentence_that_does_not_occur(written):
    _, read = written
    for entry in read('RefCOCOg_GCG_train'):
        (content,) = entry.values()
        missing = [ref for ref in content['refs'] if ref['sentence'] not in content['caption']]
        lower = [
            ref for ref in missing if ref['sentence'].lower() not in content['caption'].lower()
        ]
        assert len(missing) > len(lower) == 1


def test_flickr_has_equal_overlapping_and_ignored_spans(written):
    images, read = written
    content = read('flickr_mergedGT_GCG_train')
    captions = {image['id']: image['caption'] for image in content['images']}
    by_id = {image.image_id: image for image in images}
    spans = {}
    for annotation in content['annotations']:
        (span,) = annotation['tokens_positive']
        assert 0 <= span[0] < span[1] <= len(captions[annotation['image_id']])
        image = by_id[annotation['image_id']]
        decoded = decode_mask(annotation['sam_mask'], image.height, image.width, None, 'm')
        assert int(decoded.sum()) == annotation['area']
        if not annotation.get('ignore'):
            spans.setdefault(annotation['image_id'], []).append(tuple(span))
    assert any(len(set(found)) < len(found) for found in spans.values())
    assert all(
        any(a[0] < b[0] < b[1] == a[1] for a in found for b in found) for found in spans.values()
    )
    assert sum(bool(a.get('ignore')) for a in content['annotations']) == 24


@pytest.mark.parametrize('split', ['val', 'test'])
def test_evaluation_files(written, world_counts, split):
    images, read = written
    masks, captions = (read(f'val_test/{split}_gcg_coco_{part}_gt') for part in ('mask', 'caption'))
    by_id = {str(Path(image.file_name).with_suffix('')): image for image in images}
    assert masks['images'] == captions['images'] and len(masks['images']) == world_counts[split]
    assert all(entry['id'].startswith(f'{split}/') for entry in masks['images'])
    assert [entry['id'] for entry in masks['annotations']] == list(
        range(1, len(masks['annotations']) + 1)
    )
    in_order = []
    for entry in captions['annotations']:
        image, text = by_id[entry['image_id']], entry['caption']
        found = [a for a in masks['annotations'] if a['image_id'] == entry['image_id']]
        for label, annotation in zip(entry['labels'], found, strict=True):
            (index,) = (
                i
                for i, item in enumerate(image.objects)
                if f'a {item.description}' == label.lower()
            )
            decoded = decode_mask(annotation['segmentation'], image.height, image.width, None, 'm')
            assert (decoded == mask(image, index)).all()
            assert annotation['area'] == image.objects[index].area
            assert annotation['bbox'] == image.objects[index].bbox
        starts = [text.index(label) for label in entry['labels']]
        in_order.append(starts == sorted(starts))
    assert not all(in_order), 'the order of the labels is not that of the caption'


def test_training_has_no_evaluation_files(written, tmp_path):
    assert sorted(path.name for path in tmp_path.glob('annotations/val_test/*')) == [
        'test_gcg_coco_caption_gt.json',
        'test_gcg_coco_mask_gt.json',
        'val_gcg_coco_caption_gt.json',
        'val_gcg_coco_mask_gt.json',
    ]


def test_a_phrase_of_several_objects_has_one_mask_in_the_evaluation_files(world, tmp_path):
    images = [replace(image, split='val') for image in read_world(world) if image.groups]
    write(images, world, tmp_path, np.random.default_rng(1))
    masks, captions = (
        json.loads((tmp_path / f'annotations/val_test/val_gcg_coco_{part}_gt.json').read_text())
        for part in ('mask', 'caption')
    )
    rows = iter(masks['annotations'])
    joined = 0
    for image, entry in zip(images, captions['annotations'], strict=True):
        groups = {group.sentence: group.members for group in image.groups}
        for label, row in zip(entry['labels'], rows):
            if label in groups:
                union = np.logical_or.reduce([mask(image, i) for i in groups[label]])
                decoded = decode_mask(row['segmentation'], image.height, image.width, None, 'm')
                assert (decoded == union).all() and row['area'] == union.sum()
                joined += 1
    assert joined == len(images)


def test_files_depend_on_the_generator_only(world, tmp_path):
    images = read_world(world)
    for folder, seed in (('a', 1), ('b', 1), ('c', 2)):
        write(images, world, tmp_path / folder, np.random.default_rng(seed))
    texts = [
        (tmp_path / folder / 'annotations/GranDf_HA_GCG_train.json').read_text() for folder in 'abc'
    ]
    assert texts[0] == texts[1] != texts[2]
