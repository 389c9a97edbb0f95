"""Image-caption pairs: lists, lines, keys, test mode."""

import json

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.annotation_files import image_fields
from pixelsail_mm.datasets.readers.image_caption import TEST_QUESTION
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.captions import list_objects
from pixelsail_mm.worlds.shapes_world.formats.captions import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

QUESTIONS = ['What is it?', 'Caption it.', 'Describe it.']
GOOD = dict(image='a.jpg', caption='a dog')


@pytest.fixture
def write(tmp_path):
    (tmp_path / 'images').mkdir()

    def writer(content, suffix='json', **options):
        if not isinstance(content, str):
            content = (
                json.dumps(content)
                if suffix == 'json'
                else '\n'.join(json.dumps(entry) for entry in content)
            )
        (tmp_path / f'pairs.{suffix}').write_text(content, encoding='utf-8')
        return dict(
            type='ImageCaptionDataset',
            ann_file=f'pairs.{suffix}',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images'),
            **{'questions': QUESTIONS, **options},
        )

    return writer


@pytest.mark.parametrize('suffix', ['json', 'jsonl'])
def test_one_question_and_one_caption_are_drawn(write, suffix, tmp_path):
    entry = dict(image='f/a.jpg', captions=[' one ', 'two', ' '], id='x', height=8, width=10)
    dataset = DATASETS.build(write([entry], suffix))
    samples = [dataset[i] for i in range(40)]
    assert all(len(sample['conversation']) == 1 for sample in samples)
    turns = [sample['conversation'][0] for sample in samples]
    assert {(turn['human'], turn['gpt']) for turn in turns} == {
        (question, caption) for question in QUESTIONS for caption in ('one', 'two')
    }
    sample = samples[0]
    assert sample['img_path'] == dataset.image_path(0) == str(tmp_path / 'images/f/a.jpg')
    assert (sample['height'], sample['width']) == (8, 10)
    assert sample['masks'] == sample['prompts'] == []
    assert sample['meta'] == dict(
        sample_id='ImageCaptionDataset/x', dataset='ImageCaptionDataset', task='caption'
    )
    again = DATASETS.build(write([entry], suffix))
    assert turns == [again[i]['conversation'][0] for i in range(40)]


def test_keys_are_configurable(write):
    entry = dict(file='b.jpg', text='own', caption='other', image='wrong.jpg')
    sample = DATASETS.build(write([entry], image_key='file', caption_key='text'))[0]
    assert sample['img_path'].endswith('images/b.jpg')
    assert sample['conversation'][0]['gpt'] == 'own'
    many = DATASETS.build(write([dict(image='a.jpg', text=['p', 'q'])], caption_key='text'))
    assert {many[i]['conversation'][0]['gpt'] for i in range(20)} == {'p', 'q'}


def test_captions_come_before_caption(write):
    dataset = DATASETS.build(write([dict(GOOD, captions=['long'])]))
    assert {dataset[i]['conversation'][0]['gpt'] for i in range(10)} == {'long'}


def test_test_mode_has_all_references(write):
    entries = [dict(image='a.jpg', captions=['one', 'two'], id=7), GOOD]
    first, second = DATASETS.build(write(entries, test_mode=True, name='dev'))
    assert first['conversation'] == [dict(human=TEST_QUESTION, gpt='one')]
    assert first['meta'] == dict(
        sample_id='dev/7', dataset='dev', task='caption', image_id=7, references=['one', 'two']
    )
    assert second['meta']['image_id'] == 1 and second['meta']['references'] == ['a dog']
    own = DATASETS.build(write(entries, test_mode=True, test_question='Now?'))
    assert own[0]['conversation'][0]['human'] == 'Now?'


@pytest.mark.parametrize(
    'broken',
    [
        dict(GOOD, caption=' '),
        dict(GOOD, captions=[]),
        dict(GOOD, caption=None),
        dict(GOOD, caption=['a', 3]),
        dict(GOOD, image=None),
        dict(GOOD, image=''),
        dict(GOOD, id=[1]),
        dict(GOOD, height=0),
        dict(GOOD, width='8px'),
        dict(GOOD, width=8.5),
    ],
)
def test_unusable_entries_are_counted_in_training_and_fatal_in_tests(write, broken):
    dataset = DATASETS.build(write([broken, GOOD]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'pairs.json: \[0\]'):
        DATASETS.build(write([broken, GOOD], test_mode=True))


@pytest.mark.parametrize(
    'content, suffix, key',
    [
        ({}, 'json', 'JSON list'),
        ([], 'json', 'no item'),
        ([], 'jsonl', 'no item'),
        ([3], 'json', r'\[0\]: must be a dict'),
        ([dict(caption='a')], 'jsonl', r'\[0\].*image'),
        ([dict(image='a.jpg')], 'json', r'\[0\].*caption'),
        ('{"image": "a", "caption": "b"}\n\n{"image": ', 'jsonl', 'line 3'),
        ('[{"image": "a", "capt', 'json', r'\[0\]'),
    ],
)
def test_damaged_files_are_named(write, content, suffix, key):
    with pytest.raises(AnnotationError, match=f'pairs.{suffix}: .*{key}'):
        DATASETS.build(write(content, suffix))


def test_lines_may_be_blank_and_begin_with_a_mark(write):
    text = '\ufeff' + json.dumps(GOOD) + '\n\n \n' + json.dumps(dict(GOOD, caption='ein Kätzchen'))
    dataset = DATASETS.build(write(text, 'jsonl'))
    assert [s['conversation'][0]['gpt'] for s in dataset] == ['a dog', 'ein Kätzchen']


def test_lines_that_are_not_utf8_are_named(write, tmp_path):
    cfg = write([GOOD], 'jsonl')
    (tmp_path / 'pairs.jsonl').write_bytes(b'{"image": "\xff"}')
    with pytest.raises(AnnotationError, match='not UTF-8'):
        DATASETS.build(cfg)


def test_image_fields_leave_out_what_is_not_stated():
    assert image_fields(dict(image='a', height=None), 'image', 'f', 'x', '[0]') == dict(
        img_path='f/a'
    )


@pytest.mark.parametrize('suffix', ['json', 'jsonl'])
def test_reads_shapes_world(world, tmp_path, suffix):
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    by_file = {str(world / 'images' / image.file_name): image for image in images}
    cfg = dict(
        type='ImageCaptionDataset',
        data_root=str(tmp_path),
        questions=QUESTIONS,
        data_prefix=dict(img_path=str(world / 'images')),
        pipeline=[dict(type='LoadImage'), dict(type='LoadMasks'), dict(type='LoadVisualPrompts')],
    )
    train = DATASETS.build(dict(cfg, ann_file=f'captions_train.{suffix}'))
    assert len(train) == (24 if suffix == 'json' else 48)
    for sample in train:
        image = by_file[sample['img_path']]
        assert sample['ori_shape'] == (image.height, image.width)
        assert not len(sample['gt_masks']) and not len(sample['prompt_masks'])
        assert any(item.description in sample['conversation'][0]['gpt'] for item in image.objects)
    test = DATASETS.build(dict(cfg, ann_file=f'captions_test.{suffix}', test_mode=True))
    ids = {sample['meta']['image_id'] for sample in test}
    assert len(test) == len(ids) == (12 if suffix == 'json' else 24)
    references = {text for sample in test for text in sample['meta']['references']}
    assert {list_objects(image) for image in images if image.split == 'test'} <= references
