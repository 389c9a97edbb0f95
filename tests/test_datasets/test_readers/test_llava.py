"""The LLaVA reader and the pairing of turns."""

import json

import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.readers.conversations import parse_turns
from pixelsail_mm.registry import DATASETS


def talk(*turns):
    names = dict(h='human', g='gpt')
    return [{'from': names[turn[0]], 'value': turn[1:]} for turn in turns]


@pytest.fixture
def write(tmp_path):
    (tmp_path / 'images').mkdir()

    def writer(records, **options):
        (tmp_path / 'data.json').write_text(json.dumps(records))
        return dict(
            type='LLaVADataset',
            ann_file='data.json',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images'),
            **options,
        )

    return writer


@pytest.mark.parametrize(
    'turns, expected',
    [
        (['h<image>\nWhat?', 'gThis.'], [('What?', 'This.')]),
        (['hWhat?\n<image>', 'g This. '], [('What?', 'This.')]),
        (['gHello', 'hWhat?', 'gThis.'], [('What?', 'This.')]),
        (['hOne ', 'h two', 'gthree', 'hfour', 'gfive'], [('Onetwo', 'three'), ('four', 'five')]),
        (['hWhat?', 'gThis.', 'hAnd?'], [('What?', 'This.')]),
    ],
)
def test_turns_are_paired_as_in_the_release(turns, expected):
    assert [tuple(t.values()) for t in parse_turns(talk(*turns), 'f', '[0]')] == expected


@pytest.mark.parametrize(
    'conversations',
    [
        None,
        [],
        [{}],
        [{'from': 'system', 'value': 'x'}],
        [{'from': 'human', 'value': 3}],
        talk('gonly an answer'),
        talk('honly a question'),
        talk('hq', 'g '),
    ],
)
def test_malformed_conversations_name_file_and_entry(conversations):
    with pytest.raises(BadSampleError, match=r'some.json: \[4\].conversations'):
        parse_turns(conversations, 'some.json', '[4]')


def test_records_with_and_without_image(write, tmp_path):
    dataset = DATASETS.build(
        write(
            [
                dict(id=7, image='a/b.jpg', conversations=talk('h<image>\nWhat?', 'gThis.')),
                dict(id='t', conversations=talk('hHi', 'gHo', 'hHey', 'gHu')),
            ]
        )
    )
    picture, text = dataset
    assert picture['img_path'] == str(tmp_path / 'images/a/b.jpg')
    assert picture['conversation'] == [dict(human='What?', gpt='This.')]
    assert picture['meta'] == dict(sample_id='LLaVADataset/7', dataset='LLaVADataset', task='vqa')
    assert text['img_path'] is None and len(text['conversation']) == 2
    assert text['masks'] == text['prompts'] == []
    assert dataset.image_path(1) is None


def test_turns_can_be_limited_and_shuffled(write):
    turns = talk(*[text for i in range(6) for text in (f'hq{i}', f'ga{i}')])
    records = [dict(conversations=turns)]
    first = DATASETS.build(write(records, max_turns=2))
    assert all([t['human'] for t in first[i]['conversation']] == ['q0', 'q1'] for i in range(4))
    shuffled = DATASETS.build(write(records, max_turns=2, shuffle_turns=True))
    drawn = {tuple(t['human'] for t in shuffled[i]['conversation']) for i in range(30)}
    assert len(drawn) > 8
    tested = DATASETS.build(write(records, max_turns=2, shuffle_turns=True, test_mode=True))
    assert [t['human'] for t in tested[3]['conversation']] == ['q0', 'q1']


def test_broken_entries_are_counted_in_training_and_fatal_in_tests(write):
    good = dict(conversations=talk('hq', 'ga'))
    records = [good, dict(conversations=talk('hq'))]
    dataset = DATASETS.build(write(records))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'\[1\]'):
        DATASETS.build(write(records, test_mode=True))
    records = [good, dict(good, image=80)]
    assert DATASETS.build(write(records)).skipped.total() == 1
    with pytest.raises(BadSampleError, match=r'\[1\].image: must be the name'):
        DATASETS.build(write(records, test_mode=True))


def test_damaged_and_empty_files(write, tmp_path):
    with pytest.raises(AnnotationError, match='has no item'):
        DATASETS.build(write([]))
    with pytest.raises(AnnotationError, match=r'\[0\].*conversations'):
        DATASETS.build(write([dict(id=1)]))
    cfg = write([])
    (tmp_path / 'data.json').write_text('{"a": 1}')
    with pytest.raises(AnnotationError, match='must hold a JSON list'):
        DATASETS.build(cfg)


def test_reads_shapes_world(world, world_counts):
    dataset = DATASETS.build(
        dict(
            type='LLaVADataset',
            data_root=str(world),
            ann_file='llava/llava_train.json',
            data_prefix=dict(img_path='images'),
        )
    )
    with_image = [record for record in dataset if record['img_path']]
    assert len(with_image) == world_counts['train'] < len(dataset)
    assert all(len(record['conversation']) >= 3 for record in dataset)
