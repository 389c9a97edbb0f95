"""The readers of COCO panoptic: classes by name, instances from left to right."""

import ast
import importlib.util
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import _read_segment_ids, decode_mask
from pixelsail_mm.datasets.readers.coco_panoptic import (  # registers the readers
    COCOPanopticDataset,
    COCOSemanticDataset,
    load_coco_panoptic_names,
)
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.datasets.transforms.loading import LoadImage, LoadMasks
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats import panoptic
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

INSTANCE = ' Segmentation in the instance mode.'
SEMANTIC = ' Segmentation in the semantic mode.'
PERSON, DOG, TREE, WALL = 1, 18, 184, 199


def segment(segment_id, category_id, left=0, **extra):
    return dict(
        dict(id=segment_id, category_id=category_id, iscrowd=0, bbox=[left, 0, 2, 2], area=4),
        **extra,
    )


def annotation(*segments, image_id=7):
    return dict(file_name=f'{image_id:012}.png', image_id=image_id, segments_info=list(segments))


def make_config(folder, annotations, reader='COCOPanopticDataset', **options):
    content = dict(annotations=annotations)
    content.update({key: options.pop(key) for key in ('images', 'categories') if key in options})
    (folder / 'panoptic.json').write_text(json.dumps(content))
    (folder / 'panoptic').mkdir(exist_ok=True)
    (folder / 'images').mkdir(exist_ok=True)
    return dict(
        type=reader,
        ann_file='panoptic.json',
        data_root=str(folder),
        data_prefix=dict(img_path='images'),
        **options,
    )


@pytest.fixture
def build(tmp_path):
    """Build a reader of hand-written annotations."""

    def builder(annotations, reader='COCOPanopticDataset', **options):
        return DATASETS.build(make_config(tmp_path, annotations, reader, **options))

    return builder


def plain(record):
    return {key: value for key, value in record.items() if key != 'rng'}


def turn_names(record):
    return [turn['gpt'].split(' [SEG]')[0].removesuffix('-1') for turn in record['conversation']]


def ids(record):
    return [mask['ids'] for mask in record['masks']]


@pytest.fixture(params=['train', 'val', 'test'])
def shapes(request, world, tmp_path):
    """Config of a split of the world, and (height, width, kind to masks) of every image file."""
    images = read_world(world)
    panoptic.write(images, world, tmp_path, np.random.default_rng(0))
    truth = {}
    for image in images:
        masks = {}
        for item in sorted(image.objects, key=lambda item: item.bbox[0]):
            mask = decode_mask(item.segmentation, image.height, image.width, None, 'm')
            masks.setdefault(item.attributes['kind'], []).append(mask)
        background = ~np.any([m for found in masks.values() for m in found], axis=0)
        background[image.height - image.height // 8 :] = False
        truth[str(world / 'images' / image.file_name)] = dict(masks, background=[background])
    cfg = dict(
        ann_file=f'{tmp_path}/panoptic_{request.param}.json',
        data_prefix=dict(img_path=f'{world}/images'),
        pipeline=[LoadImage(), LoadMasks()],
    )
    return cfg, truth


def test_instances_of_shapes_world(shapes):
    cfg, truth = shapes
    dataset = COCOPanopticDataset(**cfg, num_turns=30)
    several = 0
    for sample in dataset:
        expected = truth[sample['img_path']]
        assert sorted(turn_names(sample)) == sorted(expected)
        masks = [mask for name in turn_names(sample) for mask in expected[name]]
        assert (sample['gt_masks'] == masks).all()
        for turn, name in zip(sample['conversation'], turn_names(sample)):
            assert turn['human'].endswith(SEMANTIC if name == 'background' else INSTANCE)
            several += name != 'background' and len(expected[name]) > 1
        assert (sample['height'], sample['width']) == sample['ori_shape']
    assert several


def test_classes_of_shapes_world(shapes):
    cfg, truth = shapes
    for sample in COCOSemanticDataset(**cfg, num_turns=30):
        expected = truth[sample['img_path']]
        assert len(sample['conversation']) == len(expected)
        for turn, mask in zip(sample['conversation'], sample['gt_masks'], strict=True):
            (name,) = (n for n in expected if f'all the {n}' in turn['human'])
            assert (mask == np.any(expected[name], axis=0)).all()
            assert turn['human'].endswith(SEMANTIC)
            assert turn['gpt'] in load_templates('segmentation_answers')


def test_a_png_is_decoded_once_per_sample(shapes):
    dataset = COCOPanopticDataset(**shapes[0], num_turns=30)
    _read_segment_ids.cache_clear()
    num_masks = len(dataset[0]['gt_masks'])
    info = _read_segment_ids.cache_info()
    assert (info.misses, info.hits) == (1, num_masks - 1) and num_masks > 1


def test_things_are_numbered_from_left_to_right(build):
    dataset = build(
        [
            annotation(
                segment(5, PERSON, 9),
                segment(6, TREE, 1),
                segment(7, PERSON, 2),
                segment(8, PERSON, 4.5),
            )
        ],
        questions=['Find {x}'],
    )
    record = dataset[0]
    assert record['conversation'] == [
        dict(human='Find person' + INSTANCE, gpt='person-1 [SEG] person-2 [SEG] person-3 [SEG].'),
        dict(human='Find tree' + SEMANTIC, gpt='tree [SEG].'),
    ]
    assert ids(record) == [[7], [8], [5], [6]]
    png = f'{dataset.data_root}/panoptic/000000000007.png'
    assert record['masks'][0] == dict(png=png, ids=[7])
    assert record['meta'] == dict(
        sample_id='COCOPanopticDataset/7', task='panoptic', dataset='COCOPanopticDataset'
    )


def test_without_boxes_the_order_of_the_file_is_kept(build):
    segments = [segment(5, DOG, 9), segment(6, DOG, 2), segment(7, DOG, 1)]
    del segments[1]['bbox']
    assert ids(build([annotation(*segments)])[0]) == [[5], [6], [7]]


def test_crowds_and_empty_segments_are_dropped(build):
    dataset = build(
        [
            annotation(
                segment(5, DOG, iscrowd=1),
                segment(6, DOG),
                segment(7, TREE, area=0),
                segment(8, WALL),
            ),
            annotation(segment(5, DOG, iscrowd=1), segment(7, TREE, area=0), image_id=8),
        ]
    )
    assert len(dataset) == 1 and ids(dataset[0]) == [[6], [8]]
    assert dataset[0]['conversation'][0]['gpt'] == 'dog-1 [SEG].'


def test_stuff_in_several_segments_is_one_mask(build):
    record = build([annotation(segment(5, TREE), segment(6, DOG), segment(7, TREE))])[0]
    assert ids(record) == [[5, 7], [6]]
    assert record['conversation'][0]['gpt'] == 'tree [SEG].'


def test_the_semantic_reader_joins_things_too(build):
    dataset = build(
        [annotation(segment(5, DOG, 9), segment(6, TREE), segment(7, DOG, 1))],
        'COCOSemanticDataset',
        questions=['Mark {x}'],
        answers=['Here: [SEG]'],
    )
    record = dataset[0]
    assert record['conversation'] == [
        dict(human='Mark all the dog' + SEMANTIC, gpt='Here: [SEG]'),
        dict(human='Mark all the tree' + SEMANTIC, gpt='Here: [SEG]'),
    ]
    assert [sorted(i) for i in ids(record)] == [[5, 7], [6]]
    assert record['meta']['task'] == 'semantic'


@pytest.mark.parametrize('reader', ['COCOPanopticDataset', 'COCOSemanticDataset'])
def test_some_classes_are_drawn_in_the_order_of_their_first_segments(build, reader):
    classes = [WALL, DOG, 3, TREE, PERSON, 5, 6]
    dataset = build([annotation(*(segment(i + 1, c) for i, c in enumerate(classes)))], reader)
    drawn = [sum(ids(dataset[i]), []) for i in range(200)]
    assert all(len(order) == 5 and order == sorted(set(order)) for order in drawn)
    counts = Counter(sum(drawn, []))
    assert set(counts) == set(range(1, 8)) and min(counts.values()) > 110  # 143 expected
    assert len(dataset.record(0, np.random.default_rng(0), num_turns=2)['masks']) == 2
    assert len(dataset.record(0, np.random.default_rng(0), num_turns=9)['masks']) == 7


def test_questions_and_answers_are_drawn(build):
    dataset = build([annotation(segment(5, DOG))], 'COCOSemanticDataset')
    turns = [dataset[i]['conversation'][0] for i in range(200)]
    assert {turn['gpt'] for turn in turns} == set(load_templates('segmentation_answers'))
    questions = load_templates('segmentation_questions')
    assert {turn['human'] for turn in turns} == {
        question.replace('{x}', 'all the dog') + SEMANTIC for question in questions
    }


def test_names_are_those_of_coco_made_readable():
    names = load_coco_panoptic_names()
    assert {k: names[k] for k in (112, 118, 130, 138, 171, 184, 199)} == {
        112: 'door',
        118: 'wood floor',
        130: 'lamp',
        138: 'tennis net',
        171: 'brick wall',
        184: 'tree',
        199: 'wall',
    }
    assert (len(names), len(set(names.values()))) == (133, 133)
    assert list(names) == sorted(names) and sum(k <= 90 for k in names) == 80

    def simplify(name):
        for ending in ('-merged', '-other', '-stuff'):
            name = name.removesuffix(ending)
        first, _, second = name.partition('-')
        return (
            f'{second} {first}'
            if first in ('wall', 'floor') and second
            else (name.replace('-', ' '))
        )

    root = importlib.util.find_spec('mmdet').submodule_search_locations[0]
    source = Path(root, 'datasets/coco_panoptic.py').read_text(encoding='utf-8')
    official = next(
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and node.targets[0].id == 'METAINFO'
    )
    expected = [simplify(name) for name in official['classes']]
    assert [(b, a) for a, b in zip(names.values(), expected, strict=True) if a != b] == [
        ('light', 'lamp'),
        ('net', 'tennis net'),
    ]
    names.clear()
    assert load_coco_panoptic_names(), 'a new dict every time'


CATEGORIES = [
    dict(id=1, name='cell', isthing=1),
    dict(id=3000, name='lawn', isthing=0),
    dict(id=4000, name='nucleus', isthing=1),
    dict(id=184, name='wood', isthing=0),
]


def test_the_file_names_the_classes_that_coco_does_not_know(build):
    segments = [segment(i + 1, c['id']) for i, c in enumerate(CATEGORIES)] + [segment(9, DOG)]
    answers = [
        t['gpt'] for t in build([annotation(*segments)], categories=CATEGORIES)[0]['conversation']
    ]
    assert answers == [
        'person-1 [SEG].',
        'lawn [SEG].',
        'nucleus-1 [SEG].',
        'tree [SEG].',
        'dog-1 [SEG].',
    ]


def test_the_file_can_name_all_classes(build):
    segments = [segment(i + 1, c['id']) for i, c in enumerate(CATEGORIES)]
    options = dict(categories=CATEGORIES, names_from_file=True)
    assert turn_names(build([annotation(*segments)], **options)[0]) == [
        'cell',
        'lawn',
        'nucleus',
        'wood',
    ]
    dataset = build([annotation(segment(9, DOG)), annotation(*segments)], **options)
    assert len(dataset) == 1 and 'category_id' in next(iter(dataset.skipped))


def test_image_name_and_size_come_from_the_images_or_the_png(build):
    images = [dict(id=7, file_name='train/a.png', height=8, width=10)]
    dataset = build(
        [annotation(segment(5, DOG)), annotation(segment(5, DOG), image_id=8)], images=images
    )
    root = dataset.data_root
    first, second = dataset
    assert first['img_path'] == f'{root}/images/train/a.png' == dataset.image_path(0)
    assert (first['height'], first['width']) == (8, 10)
    assert second['img_path'] == f'{root}/images/000000000008.jpg'
    assert 'height' not in second


def test_the_folder_of_the_pngs_can_be_given(build, tmp_path):
    (tmp_path / 'maps').mkdir()
    prefix = dict(img_path='images', seg_map_path='maps')
    cfg = dict(make_config(tmp_path, [annotation(segment(5, DOG))]), data_prefix=prefix)
    assert DATASETS.build(cfg)[0]['masks'][0]['png'] == f'{tmp_path}/maps/000000000007.png'
    with pytest.raises(MissingFilesError, match='seg_map_path'):
        DATASETS.build(dict(cfg, data_prefix=dict(prefix, seg_map_path='nowhere')))


def test_a_test_item_is_a_class(build):
    annotations = [
        annotation(segment(5, DOG, 3), segment(6, TREE), segment(7, DOG, 1)),
        annotation(segment(5, TREE), image_id=8),
    ]
    first, second, third = build(annotations, test_mode=True, name='dev', num_turns=1)
    assert first['conversation'] == [
        dict(human='Please segment dog in this image.' + INSTANCE, gpt='dog-1 [SEG] dog-2 [SEG].')
    ]
    assert first['meta'] == dict(
        sample_id='dev/7_18',
        dataset='dev',
        task='panoptic',
        image_id=7,
        category_id=DOG,
        class_name='dog',
        expression='dog',
    )
    assert (ids(first), ids(second), ids(third)) == ([[7], [5]], [[6]], [[5]])
    semantic = build(annotations, 'COCOSemanticDataset', test_mode=True)
    assert len(semantic) == 3 and plain(semantic[0]) == plain(semantic[3]), 'nothing is drawn'
    assert semantic[0]['conversation'] == [
        dict(human='Please segment all the dog in this image.' + SEMANTIC, gpt='It is [SEG].')
    ]
    assert semantic[0]['meta']['expression'] == 'all the dog'


def test_draws_depend_on_seed_and_index_only(build):
    many = annotation(*(segment(c, c) for c in range(1, 11)))
    dataset, again, other = (build([many], seed=seed) for seed in (3, 3, 4))
    records, same, changed = ([plain(d[i]) for i in range(5)] for d in (dataset, again, other))
    assert records == same and records != changed
    assert len({str(record['conversation']) for record in records}) == 5


def test_a_cached_index_gives_the_same_records(tmp_path, monkeypatch):
    cfg = make_config(
        tmp_path,
        [annotation(segment(5, 4000), segment(6, DOG)), annotation(segment(5, 77777))],
        categories=CATEGORIES,
        index_cache=str(tmp_path / 'cache'),
    )
    first = DATASETS.build(cfg)
    monkeypatch.setattr(COCOPanopticDataset, 'load_data_list', None)
    cached = DATASETS.build(cfg)
    assert plain(first[0]) == plain(cached[0]) and turn_names(cached[0]) == ['nucleus', 'dog']
    assert first.skipped == cached.skipped and sum(cached.skipped.values()) == 1


def test_there_is_at_least_one_turn(build):
    with pytest.raises(ValueError, match='num_turns=0'):
        build([annotation(segment(5, DOG))], num_turns=0)


@pytest.mark.parametrize(
    'broken',
    [
        annotation(segment(0, DOG)),
        annotation(segment('5', DOG)),
        annotation(segment(5, 91)),
        annotation(segment(5, [1])),
        annotation(segment(5, DOG, bbox=[1, 2])),
        annotation(segment(5, DOG, bbox='left')),
        annotation(segment(5, DOG, bbox=['1', 0, 2, 2])),
        annotation(segment(5, DOG, bbox=[float('nan'), 0, 2, 2])),
        annotation(segment(5, DOG, iscrowd='0')),
        annotation('dog'),
        annotation(dict(id=5)),
        dict(annotation(), segments_info=None),
        dict(annotation(), image_id=[7]),
        dict(annotation(), file_name=7),
    ],
)
def test_bad_annotations_are_counted_in_training_and_fatal_in_tests(build, broken):
    good = annotation(segment(5, DOG))
    dataset = build([broken, good])
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'panoptic.json: annotations\[0\]'):
        build([broken, good], test_mode=True)


@pytest.mark.parametrize(
    'annotations, options, key',
    [
        ([dict(image_id=7, file_name='a.png')], {}, r'annotations\[0\].*segments_info'),
        (dict(a=1), {}, 'annotations: must be a list'),
        ([], {}, 'ann_file'),
        ([annotation()], {}, 'has no item'),
        ([7], {}, r'annotations\[0\]'),
        ([], dict(images=[dict(id=1)]), r'images\[0\].*file_name'),
        ([], dict(images=[dict(id=1, file_name='a', height='8')]), r'images\[0\].*height'),
        ([], dict(categories=[dict(id=1)]), r'categories\[0\].*name'),
        ([], dict(categories=[dict(id=1, name=2)]), r'categories\[0\]'),
        ([], dict(categories='dog'), 'categories: must be a list'),
    ],
)
def test_damaged_files_are_named(build, annotations, options, key):
    with pytest.raises(AnnotationError, match=f'panoptic.json: .*{key}|panoptic.json: {key}'):
        build(annotations, **options)


def test_a_cut_file_is_named(build, tmp_path):
    cfg = make_config(tmp_path, [annotation(segment(5, DOG))])
    path = tmp_path / 'panoptic.json'
    path.write_text(path.read_text()[:-9])
    with pytest.raises(AnnotationError, match='panoptic.json.*not valid JSON'):
        DATASETS.build(cfg)


SEGMENTS = st.lists(
    st.builds(
        segment,
        st.just(1),
        st.sampled_from([PERSON, DOG, 3, TREE, WALL, 92]),
        st.integers(0, 30),
        area=st.sampled_from([0, 4, 9]),
        iscrowd=st.integers(0, 1),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(SEGMENTS, st.integers(1, 6), st.integers(0, 99))
def test_every_seg_has_the_mask_of_its_text(segments, num_turns, index):
    segments = [dict(s, id=i) for i, s in enumerate(segments, 1)]
    usable = {s['id']: s for s in segments if s['area'] and not s['iscrowd']}
    names = load_coco_panoptic_names()
    with tempfile.TemporaryDirectory() as folder:
        cfg = make_config(Path(folder), [annotation(*segments)], num_turns=num_turns)
        if not usable:
            with pytest.raises(AnnotationError):
                DATASETS.build(cfg)
            return
        record = DATASETS.build(cfg)[index]
    masks = iter(ids(record))
    assert len(record['conversation']) == min(
        num_turns, len({s['category_id'] for s in usable.values()})
    )
    for turn in record['conversation']:
        parts = [next(masks) for _ in range(turn['gpt'].count('[SEG]'))]
        found = [usable[i] for part in parts for i in part]
        (category,) = {s['category_id'] for s in found}
        assert len(found) == sum(s['category_id'] == category for s in usable.values())
        assert names[category] in turn['human'] and turn['gpt'].startswith(names[category])
        if category <= 90:
            lefts = [s['bbox'][0] for s in found]
            assert lefts == sorted(lefts) and all(len(part) == 1 for part in parts)
    assert next(masks, None) is None
