"""The Osprey reader: regions become prompt tokens."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.readers.osprey import _mentioned, _name_prompts, parse_choices
from pixelsail_mm.registry import DATASETS

BOX = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]


def record(question, answer='yes', count=2, **extra):
    annotation = [dict(segmentation=[[float(i)] + BOX[0][1:]]) for i in range(count)]
    return dict(
        file_name='a.jpg',
        height=8,
        width=10,
        annotation=annotation,
        conversations=[{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}],
        **extra,
    )


@pytest.fixture
def write(tmp_path):
    for folder in ('train', 'val'):
        (tmp_path / folder).mkdir()

    def writer(records, **options):
        (tmp_path / 'data.json').write_text(json.dumps(records))
        return dict(
            type='OspreyDataset',
            ann_file='data.json',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='train'),
            **options,
        )

    return writer


@pytest.mark.parametrize(
    'name',
    ['<region2>', 'region2', '<Region2>', 'Region2', '<regon2>', 'regon2', '<Regon2>', 'Regon2'],
)
def test_eight_spellings(write, name):
    dataset = DATASETS.build(
        write([record(f'<image>\nWhat is {name}?', f'{name} is red.')], test_mode=True)
    )
    assert dataset[0]['conversation'] == [dict(human='What is <Prompt1>?', gpt='<Prompt1> is red.')]


def test_numbers_are_taken_whole_and_words_left_alone(write):
    question = 'Is <region10> or region12 (not subregion1, region1b or regions1) left of region1?'
    dataset = DATASETS.build(write([record(question, count=12)], test_mode=True))
    assert dataset[0]['conversation'][0]['human'] == (
        'Is <Prompt9> or <Prompt11> (not subregion1, region1b or regions1) left of <Prompt0>?'
    )


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [
                '<',
                '>',
                'R',
                'r',
                'e',
                'egion',
                'egon',
                'region',
                'Regon',
                '1',
                '12',
                '\u0663',
                'a',
                '_',
                ' ',
            ]
        ),
        max_size=9,
    ).map(''.join)
)
def test_the_regions_that_are_checked_are_those_that_are_renamed(text):
    class SameIds:
        def __getitem__(self, index):
            return index + 1

    renamed = re.findall(r'<Prompt(\d+)>', _name_prompts(text, SameIds()))
    assert _mentioned([dict(human=text, gpt='')]) == set(map(int, renamed))


def test_ids_are_a_random_permutation_that_stays_with_its_mask(write):
    dataset = DATASETS.build(write([record('<region1> or <region3>?', count=3)]))
    seen = set()
    for i in range(20):
        sample = dataset[i]
        ids = [prompt['id'] for prompt in sample['prompts']]
        assert len(set(ids)) == 3 and set(ids) <= set(range(15))
        assert [prompt['mask'][0][0] for prompt in sample['prompts']] == [0.0, 1.0, 2.0]
        assert sample['conversation'][0]['human'] == f'<Prompt{ids[0]}> or <Prompt{ids[2]}>?'
        assert sample['masks'] == []
        seen.update(ids)
    assert len(seen) == 15


def test_test_mode_numbers_the_prompts_in_order(write):
    dataset = DATASETS.build(write([record('<region1>?', count=15)], test_mode=True))
    assert [prompt['id'] for prompt in dataset[0]['prompts']] == list(range(15))


@pytest.mark.parametrize(
    'broken',
    [
        record('What?', count=16),
        record('What?', count=0),
        record('<region3>?', count=2),
        record('<region0>?'),
        record('What?', ''),
        {**record('What?'), 'annotation': [dict(bbox=[1, 2, 3, 4])]},
        {**record('What?'), 'annotation': None},
        {**record('What?'), 'file_name': 80},
    ],
)
def test_unusable_entries_are_counted_in_training_and_fatal_in_tests(write, broken):
    dataset = DATASETS.build(write([broken, record('What?')]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'data.json: \[0\]'):
        DATASETS.build(write([broken, record('What?')], test_mode=True))


def test_options_and_answer_reach_the_meta_of_tests_only(write):
    entry = record('Colour of <region1>? A. red B. light blue Answer with the letter.', 'B')
    meta = DATASETS.build(write([entry], test_mode=True))[0]['meta']
    assert meta['choices'] == ['red', 'light blue'] and meta['answer'] == 'B'
    assert meta['task'] == 'mcq' and meta['sample_id'] == 'OspreyDataset/0'
    assert DATASETS.build(write([entry]))[0]['meta']['task'] == 'region'
    given = dict(entry, choices=['x', 'y'], answer='A')
    meta = DATASETS.build(write([given], test_mode=True, task='quiz'))[0]['meta']
    assert (meta['choices'], meta['answer'], meta['task']) == (['x', 'y'], 'A', 'quiz')


@pytest.mark.parametrize(
    'question, choices',
    [
        (
            "What? A. red B. blue C. a star D. pale-green Answer with the option's letter.",
            ['red', 'blue', 'a star', 'pale-green'],
        ),
        ('What?\nA. red\nB. dark blue', ['red', 'dark blue']),
        ('Pick one: (A) yes (B) no', ['yes', 'no']),
        ('What is it?', []),
        ('B. first C. second', []),
    ],
)
def test_parse_choices(question, choices):
    assert parse_choices(question) == choices


def test_turns_can_be_limited_shuffled_and_suffixed(write):
    entry = record('q0', 'a0')
    entry['conversations'] = [
        {'from': s, 'value': f'{s[0]}{i}'} for i in range(5) for s in ('human', 'gpt')
    ]
    first = DATASETS.build(write([entry], max_turns=2, question_suffix=' Be short.'))
    assert [t['human'] for t in first[0]['conversation']] == ['h0 Be short.', 'h1 Be short.']
    drawn = DATASETS.build(write([entry], max_turns=1, shuffle_turns=True))
    assert {drawn[i]['conversation'][0]['human'] for i in range(40)} == {f'h{i}' for i in range(5)}


def about_each_of(count):
    entry = record('', count=count)
    entry['conversations'] = [
        {'from': side, 'value': text}
        for i in range(1, count + 1)
        for side, text in (('human', f'<region{i}>?'), ('gpt', f'is {i}'))
    ]
    return entry


def test_only_mentioned_regions_are_marked(write):
    options = dict(only_mentioned=True, max_turns=1, shuffle_turns=True)
    dataset = DATASETS.build(write([about_each_of(3)], **options))
    seen = set()
    for i in range(20):
        sample = dataset[i]
        (prompt,) = sample['prompts']
        (turn,) = sample['conversation']
        assert turn['human'] == f'<Prompt{prompt["id"]}>?'
        # Region i of the file begins at column i - 1.
        assert turn['gpt'] == f'is {int(prompt["mask"][0][0]) + 1}'
        seen.add(turn['gpt'])
    assert len(seen) == 3
    test = DATASETS.build(write([record('<region2>?')], only_mentioned=True, test_mode=True))
    assert [prompt['id'] for prompt in test[0]['prompts']] == [1]


def test_regions_of_a_training_sample_can_be_limited(write):
    entry = about_each_of(4)
    entry['conversations'] *= 2
    dataset = DATASETS.build(write([entry], max_regions=2))
    kept = [[turn['gpt'] for turn in dataset[i]['conversation']] for i in range(20)]
    assert all(len(turns) == 4 and len(set(turns)) == 2 for turns in kept)
    assert set().union(*kept) == {'is 1', 'is 2', 'is 3', 'is 4'}
    test = DATASETS.build(write([entry], max_regions=2, test_mode=True))
    assert len(test[0]['conversation']) == 8


def test_type_of_the_question_reaches_the_metric(write):
    entry = record('<region1>? A. red B. blue', 'B', about='colour')
    meta = DATASETS.build(write([entry], test_mode=True))[0]['meta']
    assert meta['question_type'] == 'colour'


def test_the_first_folder_with_the_image_is_used(write, tmp_path):
    (tmp_path / 'val/a.jpg').write_bytes(b'')
    cfg = write([record('What?')])
    assert DATASETS.build(cfg)[0]['img_path'] == str(tmp_path / 'train/a.jpg')
    dataset = DATASETS.build(dict(cfg, data_prefix=dict(img_path='train', img_path_2='val')))
    assert dataset[0]['img_path'] == dataset.image_path(0) == str(tmp_path / 'val/a.jpg')


def test_malformed_file_is_named(write):
    with pytest.raises(AnnotationError, match=r'data.json: \[0\].*annotation'):
        DATASETS.build(write([dict(file_name='a.jpg', conversations=[])]))


def test_reads_shapes_world(world):
    cfg = dict(type='OspreyDataset', data_root=str(world), data_prefix=dict(img_path='images'))
    train = DATASETS.build(dict(cfg, ann_file='osprey/osprey_train.json'))
    for sample in train:
        ids = {prompt['id'] for prompt in sample['prompts']}
        named = {
            int(k)
            for turn in sample['conversation']
            for k in re.findall(r'<Prompt(\d+)>', turn['human'])
        }
        assert named == ids
        assert not any('region' in turn['human'] for turn in sample['conversation'])
    test = DATASETS.build(dict(cfg, ann_file='osprey/osprey_test.json', test_mode=True))
    assert all(len(s['meta']['choices']) == 4 and s['meta']['answer'] in 'ABCD' for s in test)
    assert all(parse_choices(s['conversation'][0]['human']) == s['meta']['choices'] for s in test)
    caption = DATASETS.build(dict(cfg, ann_file='osprey/osprey_caption_test.json', test_mode=True))
    assert {s['meta']['task'] for s in caption} == {'region'}
