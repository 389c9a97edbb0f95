"""The reader of classification of marked segments among candidates."""

import json
from collections import Counter

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.coco_panoptic import load_coco_panoptic_names
from pixelsail_mm.datasets.readers.coco_region_class import COCORegionClassDataset
from pixelsail_mm.datasets.transforms.loading import LoadImage, LoadVisualPrompts
from pixelsail_mm.worlds.shapes_world.formats import panoptic
from pixelsail_mm.worlds.shapes_world.formats.world import read_world
from pixelsail_mm.worlds.shapes_world.presets import KINDS

QUESTIONS = ['What is <region>?', 'Name <region>.']
LISTED = ' The candidate categories: '
NAMES = list(load_coco_panoptic_names().values())


def entry(*category_ids, image_id=7, **extra):
    segments = [dict(id=i, category_id=c, **extra) for i, c in enumerate(category_ids, 1)]
    return dict(file_name=f'{image_id:012}.png', image_id=image_id, segments_info=segments)


def plain(record):
    return {key: value for key, value in record.items() if key != 'rng'}


@pytest.fixture
def build(tmp_path):
    """Build the reader of hand-written annotations."""

    def builder(*annotations, **options):
        (tmp_path / 'panoptic_train2017.json').write_text(json.dumps(dict(annotations=annotations)))
        for folder in ('images', 'panoptic_train2017'):
            (tmp_path / folder).mkdir(exist_ok=True)
        return COCORegionClassDataset(
            **dict(
                dict(
                    data_root=str(tmp_path),
                    data_prefix=dict(img_path='images'),
                    questions=QUESTIONS,
                    absent_probability=0,
                ),
                **options,
            )
        )

    return builder


def split_question(turn):
    """Question without list, and the candidates."""
    question, listed = turn['human'].split(LISTED)
    assert listed.endswith('.')
    return question, listed[:-1].split(', ')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_shapes_world(world, tmp_path, split):
    images = {str(world / 'images' / image.file_name): image for image in read_world(world)}
    panoptic.write(list(images.values()), world, tmp_path, np.random.default_rng(0))
    dataset = COCORegionClassDataset(
        f'{tmp_path}/panoptic_{split}.json',
        QUESTIONS,
        [*KINDS, 'background'],
        data_prefix=dict(img_path=f'{world}/images'),
        others_probability=0,
        absent_probability=0,
        num_turns=15,
        pipeline=[LoadImage(), LoadVisualPrompts()],
    )
    for sample in dataset:
        image = images[sample['img_path']]
        marked = dict(zip(sample['prompt_ids'], sample['prompt_masks'], strict=True))
        assert len(marked) == len(sample['conversation']) == min(len(image.objects) + 1, 15)
        for turn in sample['conversation']:
            token, name = turn['gpt'].split(': ')
            mask = marked[int(token[len('<Prompt') : -1])]
            true = [
                decode_mask(item.segmentation, *mask.shape, None, 'm')
                for item in image.objects
                if item.attributes['kind'] == name
            ]
            if name == 'background':
                true = [
                    ~np.any(
                        [
                            decode_mask(item.segmentation, *mask.shape, None, 'm')
                            for item in image.objects
                        ],
                        axis=0,
                    )
                ]
                true[0][image.height - image.height // 8 :] = False
            assert any((mask == t).all() for t in true)


def test_the_true_name_is_among_ten_candidates(build):
    dataset = build(entry(1), others_probability=0)
    places, seen, sizes = Counter(), set(), Counter()
    for i in range(600):
        (turn,) = dataset[i]['conversation']
        question, candidates = split_question(turn)
        k = dataset[i]['prompts'][0]['id']
        assert question in {q.replace('<region>', f'<Prompt{k}>') for q in QUESTIONS}
        assert turn['gpt'] == f'<Prompt{k}>: person'
        assert candidates[-1] == 'others' and len(set(candidates)) == len(candidates)
        assert candidates.count('person') == 1 and set(candidates[:-1]) <= set(NAMES)
        sizes[len(candidates) - 1] += 1
        places[candidates.index('person')] += 1
        seen.update(candidates)
    assert len(seen) == 134
    assert sizes[10] + sizes[11] == 600 and sizes[11] > 500, 'the missing name was added'
    assert set(places) == set(range(11)) and max(places.values()) < 110, 'and shuffled in'


def test_a_list_with_the_true_name_is_not_shuffled_again(build):
    """With all names drawn, the list has the order of the draw: that of the same draw for any."""
    options = dict(names=['person', 'dog', 'cat', 'cow'], others_probability=0)
    for i in range(5):
        lists = [
            split_question(build(entry(category), **options)[i]['conversation'][0])[1]
            for category in (1, 18)
        ]
        assert lists[0] == lists[1]


def test_others_is_the_answer_when_the_true_name_is_removed(build):
    dataset = build(entry(1, 18), others_probability=1, names=['person', 'dog', 'cat'])
    for i in range(10):
        for turn in dataset[i]['conversation']:
            token, answer = turn['gpt'].split(': ')
            assert answer == 'others.'
            (number,) = (
                p['mask']['ids'][0] for p in dataset[i]['prompts'] if f'<Prompt{p["id"]}>' == token
            )
            rest = {1: {'dog', 'cat'}, 2: {'person', 'cat'}}[number]
            *names, last = split_question(turn)[1]
            assert set(names) == rest and len(names) == 2 and last == 'others'


def test_others_comes_with_its_probability(build):
    dataset = build(entry(1))
    count = sum('others' in dataset[i]['conversation'][0]['gpt'] for i in range(2000))
    assert count == pytest.approx(100, abs=40)  # four standard deviations


def test_absent_prompts_are_asked_for_with_candidates(build):
    dataset = build(entry(1), absent_probability=1)
    for i in range(5):
        record = dataset[i]
        k = record['prompts'][0]['id']
        absent, real = record['conversation']
        token = '<Prompt1>' if k == 0 else '<Prompt0>'
        assert absent['gpt'] == f'{token} is not in the image.'
        question, candidates = split_question(absent)
        assert question in {q.replace('<region>', token) for q in QUESTIONS}
        assert len(candidates) == 11 and candidates[-1] == 'others'
        assert candidates != split_question(real)[1]


def test_the_first_five_of_the_shuffled_segments_are_marked(build):
    dataset = build(entry(*range(1, 9)), others_probability=0)
    seen = Counter()
    for i in range(200):
        record = dataset[i]
        prompts = {f'<Prompt{p["id"]}>': p['mask'] for p in record['prompts']}
        assert len(prompts) == len(record['conversation']) == 5 and record['masks'] == []
        for turn in record['conversation']:
            token, name = turn['gpt'].split(': ')
            (number,) = prompts[token]['ids']
            assert name == load_coco_panoptic_names()[number]
            seen[number] += 1
    assert set(seen) == set(range(1, 9)) and min(seen.values()) > 90  # 125 expected
    assert record['meta'] == dict(
        sample_id='COCORegionClassDataset/7', task='region_class', dataset='COCORegionClassDataset'
    )
    rng = np.random.default_rng(0)
    assert len(dataset.record(0, rng, num_turns=2)['prompts']) == 2
    many = build(entry(*[1] * 40), num_turns=40)
    assert len(many[0]['prompts']) == 15


def test_crowds_and_empty_segments_are_not_marked(build):
    content = entry(1, 18, 3)
    content['segments_info'][0]['iscrowd'] = 1
    content['segments_info'][2]['area'] = 0
    assert [p['mask']['ids'] for p in build(content)[0]['prompts']] == [[2]]


def test_a_test_item_is_a_segment_with_all_names(build):
    options = dict(test_mode=True, absent_probability=1, others_probability=1)
    first, second = build(entry(1, 199), **options)
    listed = ', '.join(NAMES)
    assert first['conversation'] == [
        dict(human=f'What is <Prompt0>?{LISTED}{listed}, others.', gpt='<Prompt0>: person')
    ]
    assert second['conversation'][0]['gpt'] == '<Prompt0>: wall'
    assert [(p['id'], p['mask']['ids']) for p in second['prompts']] == [(0, [2])]
    assert second['meta'] == dict(
        sample_id='COCORegionClassDataset/7_2',
        dataset='COCORegionClassDataset',
        task='region_class',
        image_id=7,
        segment_id=2,
        category_id=199,
        class_name='wall',
        candidates=NAMES,
    )
    dataset = build(entry(1), names=['dog', 'cat'], **options)
    assert plain(dataset[0]) == plain(dataset[1]), 'nothing is drawn'
    assert dataset[0]['meta']['candidates'] == ['dog', 'cat', 'person']


def test_draws_depend_on_seed_and_index_only(build):
    dataset, again, other = (build(entry(*range(1, 9)), seed=seed) for seed in (3, 3, 4))
    records, same, changed = ([plain(d[i]) for i in range(5)] for d in (dataset, again, other))
    assert records == same and records != changed
    assert len({str(record['conversation']) for record in records}) == 5


def test_damage_is_named(build):
    dataset = build(entry(91), entry(1))
    assert len(dataset) == 1 and 'category_id' in next(iter(dataset.skipped))
    with pytest.raises(BadSampleError, match=r'annotations\[0\].segments_info\[0\].category_id'):
        build(entry(91), entry(1), test_mode=True)
    with pytest.raises(AnnotationError, match='has no item'):
        build(entry(1, iscrowd=1))
