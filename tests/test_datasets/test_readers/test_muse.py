"""The MUSE reader: several targets per question, text and made answers."""

import json
import os
import re

import numpy as np
import pytest

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.muse import MUSEDataset, enumerate_words  # registers it
from pixelsail_mm.datasets.transforms import LoadImage, LoadMasks, LoadVisualPrompts
from pixelsail_mm.errors import AnnotationError, BadSampleError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats import muse
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

ANSWERS = ['{x} is [SEG].', 'The segmentation result of {x} is [SEG].', '[SEG].']
GROUPS = ['Sure, {x} are {segs}.', '{segs} for {x}.']
SUFFIX = ' Please respond with segmentation mask.'


def target(number, name='Dog', rephrased=None):
    mask = [[float(number), 1.0, 5.0, 1.0, 5.0, 5.0]]
    more = {} if rephrased is None else dict(rephrased_name=rephrased)
    return dict(segmentation=mask, category_name=name, **more)


def entry(*turns, texts=None, **more):
    """Entry of (question, targets) pairs."""
    content = dict(
        file_name='a.jpg',
        height=8,
        width=10,
        ann_list=[1],
        questions=[question for question, _ in turns],
        answers=[targets for _, targets in turns],
        **more,
    )
    return content if texts is None else dict(content, text_answers=texts)


@pytest.fixture
def write(tmp_path):
    for folder in ('train2014', 'train2017', 'val2017'):
        (tmp_path / folder).mkdir()

    def writer(*entries, **options):
        (tmp_path / 'MUSE_train.json').write_text(json.dumps(entries))
        options = dict(dict(answers=ANSWERS, group_answers=GROUPS), **options)
        return dict(type='MUSEDataset', data_root=str(tmp_path), **options)

    return writer


def draws(dataset, indices):
    return [dict(dataset[i], rng=None) for i in indices]


def numbers(record):
    return [mask[0][0] for mask in record['masks']]


def test_all_questions_in_their_order_with_text_answers(write):
    turns = [
        ('<image>\nWhere? ', [target(1), target(2)]),
        ('And there?', [target(3)]),
        ('Nobody?', []),
    ]
    texts = [' One {seg}, two {seg}.', '{seg}', 'Nobody.']
    record = DATASETS.build(write(entry(*turns, texts=texts)))[0]
    assert record['conversation'] == [
        dict(human='Where?' + SUFFIX, gpt='One [SEG], two [SEG].'),
        dict(human='And there?' + SUFFIX, gpt='[SEG]'),
        dict(human='Nobody?' + SUFFIX, gpt='Nobody.'),
    ]
    assert numbers(record) == [1, 2, 3] and record['prompts'] == []
    assert record['meta'] == dict(sample_id='MUSEDataset/0', dataset='MUSEDataset', task='muse')
    assert (record['height'], record['width']) == (8, 10)


def test_the_number_of_turns_can_be_limited(write):
    turns = [(f'q{i}', [target(i)]) for i in range(4)]
    cfg = write(entry(*turns, texts=['{seg}'] * 4))
    dataset = DATASETS.build(dict(cfg, max_turns=2))
    assert [turn['human'][:2] for turn in dataset[0]['conversation']] == ['q0', 'q1']
    assert numbers(dataset.record(0, np.random.default_rng(0), num_turns=3)) == [0, 1, 2]
    assert len(DATASETS.build(cfg)[0]['masks']) == 4


@pytest.mark.parametrize(
    'place, path',
    [
        (dict(file_name='x.jpg'), 'train2014/x.jpg'),
        (dict(file_name='', coco_url='http://images.org/train2017/7.jpg'), 'train2017/7.jpg'),
        (dict(file_name=None, coco_url='http://images.org/val2017/8.jpg'), 'val2017/8.jpg'),
    ],
)
def test_image_folders(write, tmp_path, place, path):
    record = DATASETS.build(write(dict(entry(('q', [target(1)])), **place)))[0]
    assert record['img_path'] == str(tmp_path / path)
    moved = write(
        dict(entry(('q', [target(1)])), **place), data_prefix={os.path.dirname(path): 'train2014'}
    )
    assert DATASETS.build(moved)[0]['img_path'] == str(
        tmp_path / 'train2014' / os.path.basename(path)
    )


def test_made_answers_have_two_styles_and_follow_the_targets(write):
    targets = [target(1, 'Dog'), target(2, 'Cat'), target(3, 'Cow')]
    dataset = DATASETS.build(write(entry(('q', targets)), max_turns=1))
    answers = [dataset[i]['conversation'][0]['gpt'] for i in range(400)]
    grouped = [
        'Sure, dog, cat, cow are [SEG], [SEG] and [SEG].',
        '[SEG], [SEG] and [SEG] for dog, cat, cow.',
    ]
    single = {
        enumerate_words(
            [
                pattern.replace('{x}', name)
                for pattern, name in zip(
                    (ANSWERS[i], ANSWERS[j], ANSWERS[k]), ('Dog', 'Cat', 'Cow')
                )
            ]
        )
        for i in range(3)
        for j in range(3)
        for k in range(3)
    }
    assert 'Dog is [SEG]., Cat is [SEG]. and Cow is [SEG].' in single
    assert set(answers) == {*single, *grouped}
    share = np.mean([answer in grouped for answer in answers])
    assert share == pytest.approx(0.5, abs=0.1)  # four standard deviations
    assert numbers(dataset[0]) == [1, 2, 3]


def test_one_target_needs_no_and(write):
    dataset = DATASETS.build(write(entry(('q', [target(1, 'a Dog')]))))
    answers = {dataset[i]['conversation'][0]['gpt'] for i in range(60)}
    assert answers == {
        'a Dog is [SEG].',
        'The segmentation result of a Dog is [SEG].',
        '[SEG].',
        'Sure, a dog are [SEG].',
        '[SEG] for a dog.',
    }


def test_the_rephrased_name_is_preferred(write):
    cfg = write(
        entry(('q', [target(1, 'Dog', 'the spotted one')])),
        answers=['{x}: [SEG]'],
        group_answers=['{x}: {segs}'],
    )
    dataset = DATASETS.build(cfg)
    answers = [dataset[i]['conversation'][0]['gpt'].lower() for i in range(600)]
    assert set(answers) == {'dog: [seg]', 'the spotted one: [seg]'}
    assert np.mean([a[0] == 't' for a in answers]) == pytest.approx(0.9, abs=0.05)


def test_names_may_hold_our_fields(write):
    dataset = DATASETS.build(write(entry(('q', [target(1, 'a {segs} {x} {seg} dog')]))))
    assert all(dataset[i]['conversation'][0]['gpt'].count('[SEG]') == 1 for i in range(20))


def test_without_text_answer_of_its_own_a_question_gets_a_made_one(write):
    cfg = write(
        entry(
            ('q0', [target(1)]),
            ('q1', [target(2)]),
            ('q2', [target(3)]),
            texts=['Text {seg}', None, ''],
        )
    )
    turns = DATASETS.build(cfg)[0]['conversation']
    assert [turn['gpt'].startswith('Text') for turn in turns] == [True, False, False]
    assert all(turn['gpt'].count('[SEG]') == 1 for turn in turns)


def test_a_test_item_is_one_question_and_nothing_is_drawn(write):
    turns = [('q0', [target(1, 'Dog', 'spot'), target(2, 'Cat')]), ('q1', [target(3)])]
    dataset = DATASETS.build(write(entry(*turns), test_mode=True, name='val'))
    first, second = dataset
    assert first['conversation'] == [
        dict(human='q0' + SUFFIX, gpt='spot is [SEG]. and Cat is [SEG].')
    ]
    assert numbers(first) == [1, 2] and numbers(second) == [3]
    assert [r['meta']['sample_id'] for r in dataset] == ['val/0_0', 'val/0_1']
    assert draws(dataset, [0, 1]) == draws(dataset, [2, 3])


GOOD = ('q', [target(1)])


@pytest.mark.parametrize(
    'bad, key',
    [
        (dict(entry(GOOD), ann_list=[]), 'ann_list: is empty'),
        ({k: v for k, v in entry(GOOD).items() if k != 'ann_list'}, 'ann_list: is empty'),
        (entry(), 'questions: must be a list'),
        (dict(entry(GOOD), questions='q'), 'questions: must'),
        (dict(entry(GOOD), answers=[]), 'answers: must be a list'),
        (dict(entry(GOOD), answers=3), 'answers: must be a list'),
        (entry(GOOD, texts=[]), 'text_answers: must be a list'),
        (entry(GOOD, texts='{seg}'), 'text_answers: must be a list'),
        (entry((' ', [target(1)])), r'questions\[0\]: must be a text'),
        (entry((None, [target(1)])), r'questions\[0\]: must be a text'),
        (entry(('q', target(1))), r'answers\[0\]: must be a list of targets'),
        (entry(GOOD, ('q', [])), r'answers\[1\]: neither'),
        (entry(('q', [3])), r'answers\[0\]\[0\]: has no segmentation'),
        (
            entry(('q', [dict(target(1), segmentation=[])])),
            r'answers\[0\]\[0\]: has no segmentation',
        ),
        (entry(('q', [target(1, None)])), 'needs a category_name'),
        (entry(('q', [target(1, 'a [SEG]')])), 'needs a category_name'),
        (entry(('q', [target(1, 'dog', 7)])), 'needs a category_name'),
        (entry(GOOD, texts=['{seg} {seg}']), r'text_answers\[0\]: 2 {seg} for 1 targets'),
        (entry(GOOD, texts=['[SEG] {seg}']), r'text_answers\[0\]: 2 {seg} for 1 targets'),
        (entry(GOOD, texts=['none']), r'text_answers\[0\]: 0 {seg} for 1 targets'),
        (entry(GOOD, texts=[5]), r'text_answers\[0\]: must be a text'),
        (dict(entry(GOOD), file_name=5), 'file_name: 5 names no image'),
        (dict(entry(GOOD), file_name=None), 'coco_url: None names no image'),
        (dict(entry(GOOD), file_name='', coco_url='a.jpg'), 'coco_url:'),
        (dict(entry(GOOD), file_name='', coco_url='x/train2017/'), 'coco_url:'),
        (dict(entry(GOOD), file_name='', coco_url='x/test2017/a.jpg'), 'coco_url:.*val2017'),
    ],
)
def test_faulty_entries_are_counted_in_training_and_raised_in_tests(write, bad, key):
    cfg = write(bad, entry(GOOD))
    dataset = DATASETS.build(cfg)
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=rf'MUSE_train.json: \[0\].*{key}'):
        DATASETS.build(dict(cfg, test_mode=True))


@pytest.mark.parametrize('test_mode', [False, True])
def test_entries_without_questions_are_left_out_and_counted(write, test_mode):
    """The real file has such; the loaders of its authors leave them out, too."""
    silent = {key: value for key, value in entry(GOOD).items() if key != 'questions'}
    bare = dict(file_name='a.jpg', ann_list=[1])
    dataset = DATASETS.build(write(silent, entry(GOOD), bare, test_mode=test_mode))
    assert len(dataset) == 1 and dataset.skipped == {'entry without questions': 2}
    assert dataset[0]['meta']['sample_id'].startswith('MUSEDataset/1')


def test_the_file_may_be_named_as_its_authors_name_it(write, tmp_path, said):
    cfg = write(entry(GOOD))
    (tmp_path / 'MUSE_train.json').rename(tmp_path / 'muse_train.json')
    assert len(DATASETS.build(cfg)) == 1
    (message,) = said
    assert 'no' in message and f'{tmp_path}/MUSE_train.json (ann_file)' in message
    assert f'{tmp_path}/muse_train.json is read' in message


@pytest.mark.parametrize(
    'content, match',
    [
        ('{}', 'must hold a JSON list'),
        ('[]', 'has no item'),
        ('[3]', r'\[0\]: must be a dict'),
        ('[{}]', 'has no item.*1 x entry without questions'),
        ('[{"questions": []}]', r'\[0\]: lacks .*answers'),
        ('[{"questions"', 'not valid JSON'),
    ],
)
def test_damaged_and_empty_files_are_named(write, tmp_path, content, match):
    cfg = write()
    (tmp_path / 'MUSE_train.json').write_text(content)
    with pytest.raises(AnnotationError, match=f'MUSE_train.json: .*{match}'):
        DATASETS.build(cfg)


@pytest.mark.parametrize(
    'patterns',
    [dict(answers=['{x}.']), dict(answers=['[SEG] [SEG]']), dict(group_answers=['{x} is [SEG].'])],
)
def test_patterns_without_their_place_for_masks_are_refused(write, patterns):
    with pytest.raises(ValueError, match='exactly once'):
        DATASETS.build(write(entry(GOOD), **patterns))


@pytest.mark.parametrize('count, text', [(1, 'a'), (2, 'a and b'), (4, 'a, b, c and d')])
def test_enumerate_words(count, text):
    assert enumerate_words('abcd'[:count]) == text


@pytest.fixture
def shapes(world, tmp_path):
    """Images of a world, and the config of a reader of a split."""
    images = read_world(world)
    muse.write(images, world, tmp_path, np.random.default_rng(0))
    folders = dict(train2014='images', train2017='images/train', val2017='images/val')

    def config(split, **more):
        return dict(
            type='MUSEDataset',
            data_root=str(tmp_path),
            ann_file=f'MUSE_{split}.json',
            data_prefix={k: str(world / v) for k, v in folders.items()},
            answers=ANSWERS,
            group_answers=GROUPS,
            **more,
        )

    return {image.file_name: image for image in images}, config


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_reads_shapes_world(shapes, split, world_counts):
    by_name, config = shapes
    dataset = DATASETS.build(config(split, test_mode=split == 'test'))
    assert len({record['img_path'] for record in dataset}) == world_counts[split]
    counts, told = set(), set()
    for record in dataset:
        image = by_name[os.path.relpath(record['img_path'], dataset.data_prefix['train2014'])]
        loaded = LoadVisualPrompts()(LoadMasks()(LoadImage()(record)))
        masks = iter(loaded['gt_masks'])
        for turn in loaded['conversation']:
            asked = re.match(
                r'(?:Can you find|I need to see|Show the way to) (.+)[?.] Please', turn['human']
            )[1].split(' and ')
            assert turn['gpt'].count('[SEG]') == len(asked)
            for text in asked:
                (owner,) = [item for item in image.objects if text in item.sentences]
                true = decode_mask(owner.segmentation, image.height, image.width, None, 'm')
                assert np.array_equal(next(masks), true)
            counts.add(len(asked))
            told.add('There is' in turn['gpt'])
        assert next(masks, None) is None
    assert len(counts) > 1 and told == {True, False}


def test_draws_depend_on_seed_and_index(shapes):
    dataset, same, other = (DATASETS.build(shapes[1]('train', seed=seed)) for seed in (0, 0, 1))
    assert isinstance(dataset, MUSEDataset)
    count = len(dataset)
    assert draws(dataset, range(8)) == draws(same, range(8)) != draws(other, range(8))
    assert draws(dataset, range(8)) != draws(dataset, range(count, count + 8))
