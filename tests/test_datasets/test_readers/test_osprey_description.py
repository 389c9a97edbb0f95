"""Detailed descriptions of Osprey, and what all readers of region descriptions share."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.osprey_description import TEST_QUESTION, remove_labels
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.regions import describe_object
from pixelsail_mm.worlds.shapes_world.formats.regions import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def polygon(number):
    return [[float(number), 1.0, 5.0, 1.0, 5.0, 5.0]]


def entry(*descriptions, **extra):
    annotation = [dict(segmentation=polygon(i)) for i in range(len(descriptions))]
    return {
        **dict(
            file_name='a.jpg',
            height=8,
            width=10,
            annotation=annotation,
            description=list(descriptions),
        ),
        **extra,
    }


@pytest.fixture
def write(tmp_path):
    for folder in ('train', 'val'):
        (tmp_path / folder).mkdir()

    def writer(entries, **options):
        (tmp_path / 'data.json').write_text(json.dumps(entries))
        return dict(
            type='OspreyDescriptionDataset',
            ann_file='data.json',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='train'),
            **options,
        )

    return writer


def numbered(count):
    return entry(*(f'<region{i + 1}>: text {i}' for i in range(count)))


@pytest.mark.parametrize(
    'text, cleaned',
    [
        ('<region1>: A man: tall.', 'A man: tall.'),
        ('A man.', 'A man.'),
        ('Label <region 2>: a dog', 'a dog'),
        ('a < b: c > d', 'a < b: c > d'),
        ('first: <region1>: last', 'first: last'),
        ('<region1>:', ''),
        ('only <region1>', ''),
    ],
)
def test_labels_are_deleted(text, cleaned):
    assert remove_labels(text) == cleaned


def test_every_turn_describes_its_own_region(write):
    dataset = DATASETS.build(write([numbered(4)], absent_probability=0))
    ids = set()
    for i in range(30):
        sample = dataset[i]
        assert sample['masks'] == [] and len(sample['prompts']) == len(sample['conversation'])
        for prompt, turn in zip(sample['prompts'], sample['conversation']):
            number = int(prompt['mask'][0][0])
            assert turn['gpt'] == f'<Prompt{prompt["id"]}>: text {number}'
            assert f'<Prompt{prompt["id"]}>' in turn['human']
            ids.add(prompt['id'])
    assert ids == set(range(15))


def test_number_of_regions_is_uniform(write):
    dataset = DATASETS.build(write([numbered(9)], max_regions=3, absent_probability=0))
    counts = Counter(len(dataset[i]['prompts']) for i in range(600))
    assert set(counts) == {1, 2, 3}
    # Four standard deviations of a binomial distribution of 600 draws.
    assert all(abs(count - 200) < 47 for count in counts.values())
    drawn = {int(p['mask'][0][0]) for i in range(100) for p in dataset[i]['prompts']}
    assert drawn == set(range(9))


def test_there_may_be_fewer_regions_than_drawn(write):
    dataset = DATASETS.build(write([numbered(2)], max_regions=15, absent_probability=0))
    assert {len(dataset[i]['prompts']) for i in range(30)} == {1, 2}
    assert (
        len(
            DATASETS.build(write([numbered(20)], max_regions=15)).record(
                0, np.random.default_rng(0), num_turns=40
            )['prompts']
        )
        == 15
    )


def test_number_of_turns_can_be_given(write):
    dataset = DATASETS.build(write([numbered(4)], absent_probability=0))
    assert all(
        len(dataset.record(0, np.random.default_rng(i), num_turns=3)['conversation']) == 3
        for i in range(10)
    )


@pytest.mark.parametrize('number', [0, 16])
def test_number_of_regions_must_fit_the_prompts(write, number):
    with pytest.raises(ValueError, match='1..15'):
        DATASETS.build(write([numbered(1)], max_regions=number))


def test_questions_absent_prompts_and_suffix(write):
    dataset = DATASETS.build(write([numbered(2)], absent_probability=1.0, question_suffix=' Go.'))
    questions = {question + ' Go.' for question in load_templates('region_questions')}
    for i in range(10):
        sample = dataset[i]
        unused = min(set(range(15)) - {prompt['id'] for prompt in sample['prompts']})
        assert sample['conversation'][0]['gpt'] == f'<Prompt{unused}> is not in the image.'
        assert all(
            re.sub(r'<Prompt\d+>', '<region>', turn['human']) in questions
            for turn in sample['conversation']
        )


def test_default_probability_of_absent_prompts(write):
    dataset = DATASETS.build(write([numbered(1)]))
    absent = sum(len(dataset[i]['conversation']) - 1 for i in range(1000))
    assert 20 < absent < 80


def test_test_mode_has_one_region_per_item(write):
    dataset = DATASETS.build(write([numbered(2), numbered(1)], test_mode=True, name='dev'))
    assert len(dataset) == 3
    sample = dataset[1]
    assert sample['prompts'] == [dict(id=0, mask=polygon(1))]
    assert sample['conversation'] == [dict(human=TEST_QUESTION, gpt='<Prompt0>: text 1')]
    assert sample['meta'] == dict(
        sample_id='dev/0_1', dataset='dev', task='region', references=['text 1']
    )
    assert (sample['height'], sample['width']) == (8, 10)
    assert TEST_QUESTION == (
        'Can you provide me with a detailed description of the region in the '
        'picture marked by <Prompt0>?'
    )
    own = DATASETS.build(write([numbered(1)], test_mode=True, test_question='<Prompt0>?'))
    assert own[0]['conversation'][0]['human'] == '<Prompt0>?'


def test_the_same_draw_gives_the_same_sample(write):
    first, second = (DATASETS.build(write([numbered(9)], seed=4)) for _ in range(2))
    texts = [json.dumps(first[i]['conversation']) for i in range(8)]
    assert texts == [json.dumps(second[i]['conversation']) for i in range(8)]
    assert len(set(texts)) == 8


@pytest.mark.parametrize(
    'broken',
    [
        entry(),
        entry('<region1>:'),
        dict(numbered(2), description=['one']),
        dict(numbered(1), description='text'),
        dict(numbered(1), description=[None]),
        dict(numbered(1), annotation={}),
        dict(numbered(1), annotation=[dict(bbox=[1, 2, 3, 4])]),
        dict(numbered(1), annotation=['polygon']),
        dict(numbered(1), file_name=''),
        dict(numbered(1), height=True),
    ],
)
def test_unusable_entries_are_counted_in_training_and_fatal_in_tests(write, broken):
    dataset = DATASETS.build(write([broken, numbered(1)]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'data.json: \[0\]'):
        DATASETS.build(write([broken, numbered(1)], test_mode=True))


def test_regions_without_a_description_are_left_out(write):
    entries = [entry('<region1>:', 'b', '')]
    dataset = DATASETS.build(write(entries))
    assert [p['mask'] for p in dataset[0]['prompts']] == [polygon(1)]
    assert dataset.skipped == {'region without a description': 2}
    with pytest.raises(BadSampleError, match=r'annotation\[0\]'):
        DATASETS.build(write(entries, test_mode=True))


@pytest.mark.parametrize(
    'content, key',
    [({}, 'JSON list'), ([], 'no item'), ([dict(file_name='a.jpg')], r'\[0\].*annotation')],
)
def test_damaged_files_are_named(write, content, key):
    with pytest.raises(AnnotationError, match=f'data.json: .*{key}'):
        DATASETS.build(write(content))


def test_the_first_folder_with_the_image_is_used(write, tmp_path):
    cfg = write([numbered(1)])
    assert DATASETS.build(cfg)[0]['img_path'] == str(tmp_path / 'train/a.jpg')
    (tmp_path / 'val/a.jpg').write_bytes(b'')
    dataset = DATASETS.build(dict(cfg, data_prefix=dict(img_path='train', img_path_2='val')))
    assert dataset[0]['img_path'] == dataset.image_path(0) == str(tmp_path / 'val/a.jpg')


def test_reads_shapes_world(world, tmp_path):
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    truth = {}
    for image in images:
        for i, item in enumerate(image.objects):
            mask = decode_mask(item.segmentation, image.height, image.width, None, 'm')
            truth[
                str(world / 'images' / image.file_name), describe_object(image, i), mask.tobytes()
            ] = item
    cfg = dict(
        type='OspreyDescriptionDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path=str(world / 'images')),
        pipeline=[dict(type='LoadImage'), dict(type='LoadVisualPrompts')],
    )
    train = DATASETS.build(dict(cfg, ann_file='osprey_detail_description_train.json'))
    described = 0
    for sample in train:
        masks = dict(zip(sample['prompt_ids'], sample['prompt_masks']))
        for turn in sample['conversation']:
            number, text = re.fullmatch(r'<Prompt(\d+)>:? (.*)', turn['gpt']).groups()
            if text != 'is not in the image.':
                assert (sample['img_path'], text, masks[int(number)].tobytes()) in truth
                described += 1
    assert len(train) == 24 and described > 40 and not train.skipped
    test = DATASETS.build(dict(cfg, ann_file='osprey_detail_description_test.json', test_mode=True))
    assert len(test) == sum(len(image.objects) for image in images if image.split == 'test')
    for sample in test:
        (text,) = sample['meta']['references']
        assert (sample['img_path'], text, sample['prompt_masks'][0].tobytes()) in truth
