"""SAM-like region captions: chunks and the clean-up of captions."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.sam_region import clean_caption
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.regions import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

SUFFIX = ' Please provide as detailed as possible.'


def entry(count, name='sa_1.jpg', **extra):
    objects = [dict(segmentation=f'mask {i}', caption=f'caption {i}') for i in range(count)]
    return {**dict(image_name=name, object_annotations=objects), **extra}


@pytest.fixture
def write(tmp_path):
    def writer(entries, **options):
        (tmp_path / 'sam.json').write_text(json.dumps(entries))
        return dict(
            type='SAMRegionDataset', ann_file='sam.json', data_root=str(tmp_path), **options
        )

    return writer


@pytest.mark.parametrize(
    'caption, cleaned',
    [
        ('The highlighted object is a red car.', 'The object is a red car.'),
        ('A highlighted area of grass.', 'An area of grass.'),
        ('The area highlighted in the image shows a dog.', 'The area shows a dog.'),
        ('The object highlighted by a yellow contour is a dog.', 'The object is a dog.'),
        ('The boat, which is highlighted with a yellow outline, floats.', 'The boat floats.'),
        ('The car is highlighted with a bright yellow outline.', 'The car.'),
        (
            'The region is highlighted with a yellow edge and appears to be a cat.',
            'The region appears to be a cat.',
        ),
        ('A red car. It is highlighted by yellow edges.', 'A red car.'),
        ('A yellow contour surrounds the dog. It is brown.', 'It is brown.'),
        ('Highlighted by a yellow edge, the dog sits.', 'The dog sits.'),
        ('a dog with a yellow outline sits', 'a dog sits'),
        ('The region has a yellow outline and shows a cat.', 'The region shows a cat.'),
        ('A cat on a mat, with a yellow contour around it.', 'A cat on a mat.'),
        ('The object outlined in yellow is a cat.', 'The object is a cat.'),
        (
            'The object within the yellow edge is a tree. The yellow outline marks it.',
            'The object is a tree.',
        ),
        ('The object is highlighted.', ''),
        ('highlighted', ''),
    ],
)
def test_mentions_of_the_mark_are_deleted(caption, cleaned):
    assert clean_caption(caption) == cleaned


@pytest.mark.parametrize(
    'caption',
    [
        'A yellow bus beside a thin edge.',
        'Sunlight highlighting the ridge of a yellow hill.',
        'A plate with a red outline.',
        'A unique cup.',
        'A cat, black and white.  It is here.',
        'A vase marked with yellow flowers.',
    ],
)
def test_other_captions_stay(caption):
    assert clean_caption(f' {caption}\n') == caption


@given(st.text('aeiou thx.,;\n', max_size=60))
def test_a_caption_without_mention_is_never_changed(text):
    assert clean_caption(text) == text.strip()


@given(
    st.lists(
        st.sampled_from(
            [
                'The',
                'a',
                'highlighted',
                'is',
                'by',
                'with',
                'yellow',
                'edge',
                'contour',
                'outline',
                'dog',
                'and',
                'which',
                ',',
                '.',
                'It',
                'object',
            ]
        ),
        max_size=14,
    )
)
def test_no_mention_survives(words):
    cleaned = clean_caption(' '.join(words))
    assert not re.search(r'yellow (edge|contour|outline)', cleaned)
    assert cleaned == cleaned.strip()


def test_regions_are_cut_into_chunks(write):
    dataset = DATASETS.build(write([entry(12), entry(3, 'sa_2.jpg')], absent_probability=0))
    sizes = [len(sample['prompts']) for sample in dataset]
    assert sizes == [5, 5, 2, 3]
    masks = [prompt['mask'] for sample in dataset for prompt in sample['prompts']]
    assert sorted(masks[:12]) == sorted(f'mask {i}' for i in range(12))
    assert masks[:12] != [f'mask {i}' for i in range(12)]
    assert len({sample['meta']['sample_id'] for sample in dataset}) == 4
    for sample in dataset:
        for prompt, turn in zip(sample['prompts'], sample['conversation']):
            assert turn['gpt'] == f'<Prompt{prompt["id"]}>: caption {prompt["mask"][5:]}'
            assert turn['human'].endswith(SUFFIX)


def chunks(dataset):
    return [[prompt['mask'] for prompt in sample['prompts']] for sample in dataset]


def test_the_seed_shuffles_once(write):
    options = dict(max_regions=4, absent_probability=0)
    first = DATASETS.build(write([entry(12)], seed=1, **options))
    assert chunks(first) == [[p['mask'] for p in first[i]['prompts']] for i in (3, 4, 5)]
    assert chunks(first) == chunks(DATASETS.build(write([entry(12)], seed=1, **options)))
    assert chunks(first) != chunks(DATASETS.build(write([entry(12)], seed=2, **options)))
    texts = {json.dumps(first[i]['conversation']) for i in range(0, 30, 3)}
    assert len(texts) == 10, 'ids and questions are drawn anew'
    assert len(first.record(0, np.random.default_rng(0), num_turns=2)['prompts']) == 2


def test_chunks_do_not_depend_on_other_entries(write):
    alone = chunks(DATASETS.build(write([entry(2), entry(12)], absent_probability=0)))[1:]
    assert alone == chunks(DATASETS.build(write([entry(3), entry(12)], absent_probability=0)))[1:]


def test_test_mode_keeps_the_order_and_asks_about_one_region(write):
    dataset = DATASETS.build(write([entry(7)], test_mode=True))
    assert [sample['prompts'] for sample in dataset] == [
        [dict(id=0, mask=f'mask {i}')] for i in range(7)
    ]
    assert dataset[2]['conversation'] == [
        dict(
            human='Can you provide me with a detailed description of the region in the picture '
            'marked by <Prompt0>?' + SUFFIX,
            gpt='<Prompt0>: caption 2',
        )
    ]
    assert dataset[2]['meta']['references'] == ['caption 2']


def test_cleaned_away_captions_are_left_out(write):
    objects = [
        dict(segmentation='a', caption='The object is highlighted.'),
        dict(segmentation='b', caption='The highlighted cup.'),
    ]
    dataset = DATASETS.build(write([entry(0, object_annotations=objects)], absent_probability=0))
    assert chunks(dataset) == [['b']]
    assert dataset[0]['conversation'][0]['gpt'].endswith(': The cup.')
    assert dataset.skipped == {'region without a description': 1}


@pytest.mark.parametrize(
    'broken',
    [
        entry(0),
        entry(1, object_annotations=None),
        entry(1, object_annotations=['a']),
        entry(1, object_annotations=[dict(segmentation='m')]),
        entry(1, object_annotations=[dict(segmentation='m', caption=['a'])]),
        entry(1, object_annotations=[dict(caption='a')]),
        entry(1, image_name=5),
    ],
)
def test_unusable_entries_are_counted_in_training_and_fatal_in_tests(write, broken):
    dataset = DATASETS.build(write([broken, entry(1)]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'sam.json: \[0\]'):
        DATASETS.build(write([broken, entry(1)], test_mode=True))


@pytest.mark.parametrize(
    'content, key',
    [({}, 'JSON list'), ([], 'no item'), ([dict(image_name='a')], r'\[0\].*object_annotations')],
)
def test_damaged_files_are_named(write, content, key):
    with pytest.raises(AnnotationError, match=f'sam.json: .*{key}'):
        DATASETS.build(write(content))


def test_reads_shapes_world(world, tmp_path):
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    masks = {
        (
            str(world / 'images' / image.file_name),
            decode_mask(item.segmentation, image.height, image.width, None, 'm').tobytes(),
        ): item
        for image in images
        for item in image.objects
    }
    cfg = dict(
        type='SAMRegionDataset',
        data_root=str(tmp_path),
        absent_probability=0,
        data_prefix=dict(img_path=str(world / 'images')),
        max_regions=2,
        pipeline=[dict(type='LoadImage'), dict(type='LoadVisualPrompts')],
    )
    train = DATASETS.build(dict(cfg, ann_file='sam_regions_train.json'))
    seen = []
    for sample in train:
        texts = {turn['gpt'].split('>: ')[0][7:]: turn['gpt'] for turn in sample['conversation']}
        for k, mask in zip(sample['prompt_ids'], sample['prompt_masks']):
            item = masks[sample['img_path'], mask.tobytes()]
            assert item.description in texts[str(k)]
            assert not re.search('highlight|outline|contour|edge', texts[str(k)])
            seen.append(item.ann_id)
    assert sorted(seen) == sorted(
        item.ann_id for image in images if image.split == 'train' for item in image.objects
    )
    test = DATASETS.build(dict(cfg, ann_file='sam_regions_test.json', test_mode=True))
    assert len(test) == sum(len(image.objects) for image in images if image.split == 'test')
    assert all((s['img_path'], s['prompt_masks'][0].tobytes()) in masks for s in test)
