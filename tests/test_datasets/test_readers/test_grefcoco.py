"""The gRefCOCO reader: several targets as one mask, no target, evaluation."""

import json
import pickle

import numpy as np
import pytest

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.grefcoco import GRefCOCODataset  # registers it
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.datasets.transforms import LoadImage, LoadMasks, LoadVisualPrompts
from pixelsail_mm.errors import AnnotationError, BadSampleError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.expressions import parse
from pixelsail_mm.worlds.shapes_world.formats import grefcoco
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


def annotation(ann_id, segmentation=None, **more):
    mask = [[float(ann_id)] + SQUARE[0][1:]] if segmentation is None else segmentation
    return dict(id=ann_id, image_id=1, segmentation=mask, **more)


def reference(ref_id, ann_id, *sentences, split='train', image_id=1):
    return dict(
        ref_id=ref_id,
        ann_id=ann_id,
        image_id=image_id,
        split=split,
        sentences=[
            s if isinstance(s, dict) else dict(raw=s, sent_id=10 * ref_id + i)
            for i, s in enumerate(sentences)
        ],
    )


@pytest.fixture
def write(tmp_path):
    (tmp_path / 'images').mkdir()

    def writer(annotations, refs, as_pickle=False, **options):
        images = [dict(id=i, file_name=f'{i}.jpg', height=8, width=10) for i in (1, 2)]
        (tmp_path / 'instances.json').write_text(
            json.dumps(dict(images=images, annotations=annotations))
        )
        name = 'grefs(unc).p' if as_pickle else 'grefs(unc).json'
        content = pickle.dumps(refs, 2) if as_pickle else json.dumps(refs).encode()
        (tmp_path / name).write_bytes(content)
        return dict(
            type='GRefCOCODataset',
            data_root=str(tmp_path),
            split_file=name,
            data_prefix=dict(img_path='images'),
            questions=['Find {x}'],
            **options,
        )

    return writer


def draws(dataset, indices):
    return [dict(dataset[i], rng=None) for i in indices]


def phrases(record):
    return [turn['human'].removeprefix('Find ') for turn in record['conversation']]


@pytest.mark.parametrize('as_pickle', [False, True])
def test_one_two_and_no_targets(write, as_pickle):
    refs = [reference(1, [1], 'One.'), reference(2, [1, 2], ' Both '), reference(3, [-1], 'none')]
    dataset = DATASETS.build(write([annotation(1), annotation(2)], refs, as_pickle))
    masks = dict(
        one=dict(union=[annotation(1)['segmentation']]),
        both=dict(union=[annotation(i)['segmentation'] for i in (1, 2)]),
        none=[],
    )
    seen, answers = set(), set()
    for i in range(30):
        record = dataset[i]
        assert len(record['conversation']) == len(record['masks']) == 5
        for turn, mask, phrase in zip(record['conversation'], record['masks'], phrases(record)):
            assert mask == masks[phrase]
            assert (turn['gpt'] == 'No target [SEG].') == (phrase == 'none')
            answers.add(turn['gpt'])
            seen.add(phrase)
    assert seen == set(masks)
    assert answers == {*load_templates('segmentation_answers'), 'No target [SEG].'}
    assert record['meta']['task'] == 'refseg' and (record['height'], record['width']) == (8, 10)


def test_no_target_masks_are_empty_and_trained(write):
    dataset = DATASETS.build(write([], [reference(1, [-1], 'none')], num_turns=2))
    record = LoadMasks()(dict(dataset[0], img=np.zeros((8, 10, 3), np.uint8), ori_shape=(8, 10)))
    assert record['gt_masks'].shape == (2, 8, 10) and not record['gt_masks'].any()


def test_every_mask_spelling_joins_one_mask(write):
    rle = dict(size=[8, 10], counts=[0, 8, 72])
    packed = dict(size=[8, 10], counts='P1P2')
    annotations = [annotation(1), annotation(2, rle), annotation(3, []), annotation(4, None)]
    annotations[3]['segmentation'] = None
    dataset = DATASETS.build(write(annotations, [reference(1, [1, 2, 3, 4], 'all')]))
    mask = decode_mask(dataset[0]['masks'][0], 8, 10, None, 'm')
    assert np.array_equal(
        mask, decode_mask(SQUARE, 8, 10, None, 'm') | decode_mask(rle, 8, 10, None, 'm')
    )
    dataset = DATASETS.build(write([annotation(1, packed)], [reference(1, [1], 'packed')]))
    assert dataset[0]['masks'][0] == dict(union=[packed])


def test_a_test_item_is_one_sentence_as_the_file_normalises_it(write):
    refs = [
        reference(
            1,
            [1, 2],
            dict(raw='The TWO, left.', sent='the two left', sent_id=7),
            dict(raw='Pair.', sent_id=8),
        ),
        reference(2, [-1], 'none'),
    ]
    dataset = DATASETS.build(
        dict(write([annotation(1), annotation(2)], refs), test_mode=True, name='dev')
    )
    both, pair, none = dataset
    assert both['conversation'] == [
        dict(human='Please segment the two left in this image.', gpt='It is [SEG].')
    ]
    assert both['meta'] == dict(
        sample_id='dev/1_7',
        dataset='dev',
        task='refseg',
        expression='the two left',
        image_id=1,
        ref_id=1,
        ann_id=[1, 2],
        no_target=False,
    )
    assert pair['meta']['expression'] == 'pair'
    assert none['meta']['no_target'] is True and none['masks'] == [[]]
    assert none['conversation'][0]['gpt'] == 'No target [SEG].'


def test_training_cleans_the_raw_text(write):
    refs = [reference(1, [1], dict(raw='The TWO, left.', sent='the two left'))]
    assert set(phrases(DATASETS.build(write([annotation(1)], refs))[0])) == {'the two, left'}


def test_crowds_belong_to_the_target_in_training_only(write):
    annotations = [annotation(1), annotation(2, iscrowd=1)]
    cfg = write(annotations, [reference(1, [1, 2], 'both'), reference(2, [2], 'crowd')])
    masks = {
        phrase: mask
        for i in range(9)
        for record in [DATASETS.build(cfg)[i]]
        for phrase, mask in zip(phrases(record), record['masks'])
    }
    assert {phrase: len(mask['union']) for phrase, mask in masks.items()} == dict(both=2, crowd=1)
    both, crowd = DATASETS.build(dict(cfg, test_mode=True))
    assert both['masks'] == [dict(union=[annotation(1)['segmentation']])]
    assert crowd['masks'] == [[]] and crowd['meta']['no_target'] is True


def test_paper_mode_freezes_sentences_and_keeps_all_references(write):
    refs = [
        reference(1, [-1], 'a', 'b', 'c'),
        reference(2, [-1], 'd', 'e'),
        reference(3, [1], 'f'),
        reference(4, [1], 'g', image_id=2),
    ]
    cfg = dict(write([annotation(1)], refs), paper=True, num_turns=20)
    drawn = []
    for seed in range(24):
        dataset = DATASETS.build(dict(cfg, seed=seed))
        drawn.append({phrase for i in range(6) for phrase in phrases(dataset[i])})
    assert all(len(texts) == 4 and {'f', 'g'} < texts for texts in drawn)
    assert set().union(*drawn) == set('abcdefg')
    assert len(DATASETS.build(dict(cfg, test_mode=True))) == 7, 'evaluation asks every sentence'


@pytest.mark.parametrize('ids', [[], [-1, 1], [1, -1], 3, 'x', None, [[1]], [1.5]])
def test_a_faulty_list_of_annotations_is_counted_in_training_and_raised_in_tests(write, ids):
    cfg = write([annotation(1)], [reference(1, ids, 'bad'), reference(2, [1], 'good')])
    dataset = DATASETS.build(cfg)
    assert set(phrases(dataset[0])) == {'good'} and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'unc\).json: refs\[0\].ann_id: must be a list'):
        DATASETS.build(dict(cfg, test_mode=True))


@pytest.mark.parametrize(
    'refs, key',
    [
        ([reference(1, [1, 9], 'a')], r'refs\[0\].ann_id: annotations \[9\]'),
        ([reference(1, [1], 'a', image_id=7)], 'image_id'),
        ([], 'split'),
        ([reference(1, [1], 'a', split='val')], "split.*'val'"),
        ([reference(1, [1], '.')], 'ann_file: GRefCOCODataset has no item'),
        ([dict(reference(1, [1]), sentences='a')], r'refs\[0\].sentences: must be a list'),
        ([reference(1, [1], dict(raw=3))], r'sentences\[0\].raw: must be a text'),
        ({}, 'split_file: must hold a JSON list'),
        ([3], r'refs\[0\]: must be a dict'),
    ],
)
def test_damaged_files_are_named(write, refs, key):
    with pytest.raises(AnnotationError, match=key):
        DATASETS.build(write([annotation(1)], refs))


def test_a_cut_off_file_is_named(write, tmp_path):
    cfg = write([annotation(1)], [reference(1, [1], 'a')])
    path = tmp_path / 'grefs(unc).json'
    path.write_text(path.read_text()[:-9])
    with pytest.raises(AnnotationError, match=r'grefs\(unc\).json: \[0\]: not valid JSON'):
        DATASETS.build(cfg)


def test_files_of_refcoco_are_refused_with_the_right_reader(write):
    cfg = write([annotation(1)], [reference(1, [1], 'a')], as_pickle=True)
    cfg = dict(cfg, type='RefCOCODataset')
    with pytest.raises(AnnotationError, match='GRefCOCODataset'):
        DATASETS.build(cfg)


@pytest.fixture
def shapes(world, tmp_path):
    """Images of a world, and the config of a reader of it."""
    images = read_world(world)
    grefcoco.write(images, world, tmp_path, np.random.default_rng(0))
    return images, dict(
        type='GRefCOCODataset',
        data_root=str(tmp_path),
        questions=['Find {x}'],
        data_prefix=dict(img_path=str(world / 'images')),
    )


def meant(phrase, image):
    """Union of the true masks of all objects that a phrase of the language means."""
    members = [i for i, item in enumerate(image.objects) if phrase in item.sentences]
    members += [i for group in image.groups if group.sentence == phrase for i in group.members]
    expression = parse(phrase)
    if not expression.superlative and not expression.relation:
        looks = [
            all(
                item.attributes[name] == getattr(expression.target, name)
                for name in expression.target.named
            )
            for item in image.objects
        ]
        assert not members or set(members) == set(np.flatnonzero(looks))
        members = np.flatnonzero(looks)
    masks = [
        decode_mask(image.objects[i].segmentation, image.height, image.width, None, 'm')
        for i in members
    ]
    return np.logical_or.reduce([np.zeros((image.height, image.width), bool), *masks])


@pytest.mark.parametrize('split', ['train', 'val', 'testA', 'testB'])
def test_reads_shapes_world(shapes, split):
    images, cfg = shapes
    by_name = {image.file_name: image for image in images}
    dataset = DATASETS.build(dict(cfg, split=split, test_mode=split != 'train'))
    sizes = set()
    for record in dataset:
        texts = [record['meta']['expression']] if split != 'train' else phrases(record)
        image = by_name[record['img_path'].split('images/')[1]]
        assert image.split == split.rstrip('AB')
        loaded = LoadVisualPrompts()(LoadMasks()(LoadImage()(record)))
        assert loaded['prompt_ids'] == []
        for text, mask, turn in zip(texts, loaded['gt_masks'], loaded['conversation'], strict=True):
            assert np.array_equal(mask, meant(text, image))
            assert (turn['gpt'] == 'No target [SEG].') == (not mask.any())
            sizes.add(0 if not mask.any() else 1 + text.startswith('every'))
        if split != 'train':
            assert record['meta']['no_target'] == (not loaded['gt_masks'].any())
    assert sizes == {0, 1, 2}


def test_json_and_pickle_give_the_same_items(shapes):
    _, cfg = shapes
    one, other = (
        DATASETS.build(dict(cfg, split_file=name)) for name in ('grefs(unc).json', 'grefs(unc).p')
    )
    assert draws(one, range(len(one))) == draws(other, range(len(other)))


def test_draws_depend_on_seed_and_index(shapes):
    dataset, same, other = (DATASETS.build(dict(shapes[1], seed=seed)) for seed in (0, 0, 1))
    assert isinstance(dataset, GRefCOCODataset)
    count = len(dataset)
    assert draws(dataset, range(4)) == draws(same, range(4)) != draws(other, range(4))
    assert draws(dataset, range(4)) != draws(dataset, range(count, count + 4))
