"""The RefCOCO reader: public layout, all references, drawn sentences, control."""

import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.datasets.readers.refcoco import clean_phrase, other_image_permutation
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS

BOX = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


def image(image_id):
    return dict(id=image_id, file_name=f'{image_id}.jpg', height=8, width=10)


def annotation(ann_id, image_id):
    return dict(
        id=ann_id, image_id=image_id, segmentation=[[float(ann_id)] + BOX[0][1:]], category_id=1
    )


def reference(ref_id, ann_id, image_id, *sentences, split='train'):
    return dict(
        ref_id=ref_id,
        ann_id=ann_id,
        image_id=image_id,
        split=split,
        sentences=[dict(raw=s, sent_id=10 * ref_id + i) for i, s in enumerate(sentences)],
    )


def phrases(record):
    questions = load_templates('segmentation_questions')
    found = []
    for turn in record['conversation']:
        for question in sorted(questions, key=len, reverse=True):
            before, after = question.split('{x}')
            text = turn['human']
            if text.startswith(before) and text.endswith(after):
                found.append(text[len(before) : len(text) - len(after)])
                break
        else:
            raise AssertionError(f'{turn} follows no template')
    return found


def test_a_training_item_is_an_image_with_five_turns(refcoco_cfg, mini_world, world_counts):
    dataset = DATASETS.build(refcoco_cfg)
    refs = load_plain_pickle(mini_world / 'refcoco/refs(unc).p')
    known = {(r['file_name'], s['raw']) for r in refs for s in r['sentences']}
    assert len(dataset) == world_counts['train']
    for record in dataset:
        assert len(record['conversation']) == len(record['masks']) == 5
        assert record['img_path'].startswith(str(mini_world / 'images/train'))
        assert (record['height'], record['width']) == (64, 64)
        name = record['img_path'].split('images/')[1]
        assert {(name, phrase) for phrase in phrases(record)} <= known
        assert all(
            turn['gpt'] in load_templates('segmentation_answers') for turn in record['conversation']
        )
        assert record['meta']['task'] == 'refseg'


def test_masks_follow_their_turns(write_refcoco):
    cfg = write_refcoco(
        [image(1)],
        [annotation(i, 1) for i in (1, 2, 3)],
        [reference(i, i, 1, f'object {i}') for i in (1, 2, 3)],
    )
    dataset = DATASETS.build(cfg)
    for i in range(8):
        record = dataset[i]
        numbers = [int(phrase.split()[-1]) for phrase in phrases(record)]
        assert [mask[0][0] for mask in record['masks']] == numbers


def test_several_references_to_one_object_all_stay(write_refcoco):
    refs = [reference(1, 1, 1, 'a', 'b'), reference(2, 1, 1, 'c')]
    cfg = write_refcoco([image(1)], [annotation(1, 1)], refs)
    dataset = DATASETS.build(cfg)
    assert {p for i in range(20) for p in phrases(dataset[i])} == {'a', 'b', 'c'}


def test_paper_mode_keeps_one_frozen_sentence_of_the_last_reference(write_refcoco):
    refs = [reference(1, 1, 1, 'a', 'b'), reference(2, 1, 1, 'c', 'd', 'e')]
    cfg = dict(write_refcoco([image(1)], [annotation(1, 1)], refs), paper=True)
    datasets = [DATASETS.build(dict(cfg, seed=seed)) for seed in range(6)]
    drawn = [{p for i in range(20) for p in phrases(dataset[i])} for dataset in datasets]
    assert all(len(texts) == 1 for texts in drawn)
    assert set().union(*drawn) <= {'c', 'd', 'e'} and len(set().union(*drawn)) > 1


def test_drawing_with_and_without_replacement(write_refcoco):
    refs = [reference(1, 1, 1, 'a', 'b'), reference(2, 2, 1, 'c')]
    cfg = write_refcoco([image(1)], [annotation(1, 1), annotation(2, 1)], refs)
    seven = DATASETS.build(dict(cfg, num_turns=7))
    assert all(len(phrases(seven[i])) == 7 for i in range(3))
    distinct = DATASETS.build(dict(cfg, num_turns=7, replacement=False))
    assert all(sorted(phrases(distinct[i])) == ['a', 'b', 'c'] for i in range(5))
    two = DATASETS.build(dict(cfg, num_turns=2, replacement=False))
    assert all(len(set(phrases(two[i]))) == 2 for i in range(5))
    assert len(two.record(0, np.random.default_rng(0), num_turns=1)['masks']) == 1


def test_every_question_and_answer_is_drawn(refcoco_cfg):
    dataset = DATASETS.build(dict(refcoco_cfg, num_turns=40))
    turns = [turn for i in range(24) for turn in dataset[i]['conversation']]
    answers = Counter(turn['gpt'] for turn in turns)
    assert set(answers) == set(load_templates('segmentation_answers'))
    assert min(answers.values()) > 0.5 * len(turns) / 5
    assert len({turn['human'].split(' ')[0] for turn in turns}) > 3


def test_question_and_answer_lists_are_configurable(refcoco_cfg):
    dataset = DATASETS.build(dict(refcoco_cfg, questions=['Find {x}'], answers=['Here [SEG]']))
    turn = dataset[0]['conversation'][0]
    assert turn['human'].startswith('Find the ') and turn['gpt'] == 'Here [SEG]'
    with pytest.raises(KeyError, match='nonsense'):
        DATASETS.build(dict(refcoco_cfg, questions='nonsense'))


@pytest.mark.parametrize(
    'raw, phrase',
    [
        ('The Left Boy.', 'the left boy'),
        ('dog..', 'dog.'),
        (' St. John ', 'st. john'),
        ('.', ''),
        ('  ', ''),
        ('cat .', 'cat'),
    ],
)
def test_clean_phrase(raw, phrase):
    assert clean_phrase(raw) == phrase


def test_empty_expressions_are_skipped_and_counted(write_refcoco):
    refs = [reference(1, 1, 1, '.', 'a'), reference(2, 2, 1, ' ')]
    cfg = write_refcoco([image(1)], [annotation(1, 1), annotation(2, 1)], refs)
    dataset = DATASETS.build(cfg)
    assert set(phrases(dataset[0])) == {'a'}
    assert dataset.skipped == {'empty expression': 2}


def test_a_test_item_is_one_sentence(write_refcoco):
    refs = [reference(1, 1, 1, 'The Dog.', 'spot', split='val'), reference(2, 2, 1, 'cat')]
    cfg = write_refcoco([image(1)], [annotation(1, 1), annotation(2, 1)], refs)
    dataset = DATASETS.build(dict(cfg, test_mode=True, split='val', name='dev'))
    first, second = dataset
    assert first['conversation'][0]['human'] == 'Please segment the dog in this image.'
    assert first['masks'] == [annotation(1, 1)['segmentation']]
    assert first['meta'] == dict(
        sample_id='dev/1_10',
        dataset='dev',
        task='refseg',
        image_id=1,
        expression='the dog',
        ref_id=1,
        ann_id=1,
    )
    assert second['meta']['expression'] == 'spot'
    assert dataset[0]['conversation'] == dataset[2]['conversation'], 'questions are fixed'


def test_expression_kind_reaches_the_meta(refcoco_cfg):
    dataset = DATASETS.build(dict(refcoco_cfg, test_mode=True, split='test'))
    kinds = Counter(record['meta']['expression_kind'] for record in dataset)
    assert set(kinds) == {'attribute', 'relation', 'superlative'}
    assert len({record['meta']['sample_id'] for record in dataset}) == len(dataset)


def test_shuffled_expressions_come_from_another_image(refcoco_cfg):
    cfg = dict(refcoco_cfg, test_mode=True, split='test')
    plain = list(DATASETS.build(cfg))
    mixed = list(DATASETS.build(dict(cfg, shuffle_expressions=True)))
    again = list(DATASETS.build(dict(cfg, shuffle_expressions=True)))
    expression = [r['meta']['expression'] for r in mixed]
    assert expression == [r['meta']['expression'] for r in again]
    assert Counter(expression) == Counter(r['meta']['expression'] for r in plain)
    assert expression != [r['meta']['expression'] for r in plain]
    for a, b in zip(plain, mixed, strict=True):
        assert (a['masks'], a['img_path']) == (b['masks'], b['img_path'])
        assert b['meta']['expression'] in b['conversation'][0]['human']


def test_shuffling_needs_test_mode_and_a_second_image(write_refcoco):
    cfg = write_refcoco([image(1)], [annotation(1, 1)], [reference(1, 1, 1, 'a')])
    with pytest.raises(ValueError, match='test_mode=True'):
        DATASETS.build(dict(cfg, shuffle_expressions=True))
    with pytest.raises(AnnotationError, match='shuffle_expressions.*1 of 1'):
        DATASETS.build(dict(cfg, shuffle_expressions=True, test_mode=True))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 5))
def test_the_permutation_never_stays_on_an_image(groups, seed):
    largest = Counter(groups).most_common(1)[0][1]
    if 2 * largest > len(groups):
        with pytest.raises(ValueError, match='one image'):
            other_image_permutation(groups, seed)
        return
    permutation = other_image_permutation(groups, seed)
    assert sorted(permutation) == list(range(len(groups)))
    assert all(groups[i] != groups[j] for i, j in enumerate(permutation))
    assert (permutation == other_image_permutation(groups, seed)).all()


def test_missing_files_are_listed_together(tmp_path):
    with pytest.raises(MissingFilesError) as caught:
        DATASETS.build(
            dict(
                type='RefCOCODataset',
                data_root=str(tmp_path),
                data_prefix=dict(img_path='train2014'),
            )
        )
    assert [key for key, _ in caught.value.missing] == [
        'ann_file',
        'data_prefix.img_path',
        'split_file',
    ]


@pytest.mark.parametrize(
    'refs, key',
    [
        ({}, 'split_file'),
        ([dict(ref_id=1)], r'refs\[0\]'),
        ([reference(1, 99, 1, 'a')], r'refs\[0\].ann_id'),
        ([reference(1, 1, 7, 'a')], 'image_id'),
        ([reference(1, 1, [7], 'a')], r'refs\[0\].image_id: must be a number'),
        ([reference(1, dict(a=1), 1, 'a')], r'refs\[0\].ann_id: must be a number'),
        ([{0: 1, 'ref_id': 1}], r'refs\[0\]: lacks'),
        ([reference(1, 1, 1, 'a', split='x')], 'split'),
        ([reference(1, 1, 1, '')], 'ann_file'),
        ([reference(1, [1], 1, 'a')], r'refs\[0\].ann_id: .*GRefCOCODataset'),
        ([dict(reference(1, 1, 1), sentences=None)], r'refs\[0\].sentences: must be a list'),
        (
            [dict(reference(1, 1, 1), sentences=[dict(raw=3)])],
            r'sentences\[0\].raw: must be a text',
        ),
    ],
)
def test_damaged_references_are_named(write_refcoco, refs, key):
    cfg = write_refcoco([image(1)], [annotation(1, 1)], refs)
    with pytest.raises(AnnotationError, match=key):
        DATASETS.build(cfg)


def test_masks_come_as_the_file_spells_them(write_refcoco, tmp_path):
    masks = [BOX, dict(size=[8, 10], counts=[3, 4, 73]), dict(size=[8, 10], counts='0T2'), []]
    annotations = [dict(id=i, segmentation=mask) for i, mask in enumerate(masks)]
    refs = [reference(i, i, 1, 'a') for i in (2, 0, 3, 1)]
    cfg = write_refcoco(
        [dict(image(1), file_name='old.jpg'), image(1)],
        [dict(id=1, segmentation=BOX), *annotations],
        refs,
    )
    # As in the public files, the tables may stand in any order; the last of equal ids counts.
    content = json.loads((tmp_path / 'instances.json').read_text())
    (tmp_path / 'instances.json').write_text(json.dumps(dict(reversed(content.items()))))
    info = DATASETS.build(cfg).get_data_info(0)
    assert info['img_path'].endswith('1.jpg')
    assert [ref['mask'] for ref in info['refs']] == [masks[i] for i in (2, 0, 3, 1)]


def test_references_to_one_object_share_its_mask(write_refcoco):
    cfg = write_refcoco(
        [image(1)],
        [annotation(1, 1), annotation(2, 1)],
        [reference(i, k, 1, 'a') for i, k in enumerate((1, 2, 1))],
    )
    first, other, second = DATASETS.build(cfg).get_data_info(0)['refs']
    assert first['mask'] is second['mask'] and other['mask'] is not first['mask']


def test_masks_do_not_fill_the_memory(write_refcoco):
    cfg = write_refcoco(
        [image(i) for i in range(100)],
        [dict(id=i, segmentation=[[i + j / 7 for j in range(500)]]) for i in range(1000)],
        [reference(i, i, i // 10, 'a') for i in range(1000)],
    )
    dataset = DATASETS.build(dict(cfg, lazy_init=True))
    tracemalloc.start()
    for _ in dataset.load_data_list():
        pass
    # While the text is parsed: twice itself (18 bytes a number) and 9 bytes a packed number, where
    # a parsed number takes 32. Without packing this is 34 MB.
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 28e6


def test_damaged_instances_are_named(write_refcoco, tmp_path):
    cfg = write_refcoco([image(1)], [dict(id=1)], [reference(1, 1, 1, 'a')])
    with pytest.raises(AnnotationError, match=r'instances.json: annotations\[0\].*segmentation'):
        DATASETS.build(cfg)
    cfg = write_refcoco([image(1)], [dict(annotation(1, 1), id=[1])], [reference(1, 1, 1, 'a')])
    with pytest.raises(AnnotationError, match=r'annotations\[0\].id: must be a number'):
        DATASETS.build(cfg)
    cfg = write_refcoco([image(1)], None, [reference(1, 1, 1, 'a')])
    with pytest.raises(AnnotationError, match='annotations: must be a list'):
        DATASETS.build(cfg)
    (tmp_path / 'instances.json').write_text('{"images": []}')
    with pytest.raises(AnnotationError, match='annotations'):
        DATASETS.build(cfg)


@pytest.mark.parametrize('damage', [dict(file_name=3), dict(height=[80])], ids=str)
def test_a_damaged_image_costs_its_own_references(write_refcoco, damage):
    images = [image(1), dict(image(2), **damage)]
    refs = [reference(1, 1, 1, 'a'), reference(2, 2, 2, 'b')]
    cfg = write_refcoco(images, [annotation(1, 1), annotation(2, 2)], refs)
    dataset = DATASETS.build(cfg)
    assert len(dataset) == 1 and dataset.skipped.total() == 1
    with pytest.raises(BadSampleError, match=r'instances.json: image 2\.'):
        DATASETS.build(dict(cfg, test_mode=True, split='train'))
