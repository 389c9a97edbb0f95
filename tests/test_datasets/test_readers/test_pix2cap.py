"""The Pix2Cap readers: segments by their descriptions, descriptions of marked segments."""

import json
from collections import Counter

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.pix2cap import Pix2CapRegionDataset, Pix2CapSegDataset
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.datasets.transforms.loading import LoadImage, LoadMasks, LoadVisualPrompts
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.worlds.shapes_world.formats import pix2cap
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

QUESTIONS = ['Segment: {x}', 'Which part is this? {x}']
READERS = [Pix2CapSegDataset, Pix2CapRegionDataset]


def entry(*descriptions, image_id=7):
    segments = [dict(id=i, description=text) for i, text in enumerate(descriptions, 1)]
    return dict(file_name=f'{image_id:012}.png', image_id=image_id, segments_info=segments)


def plain(record):
    return {key: value for key, value in record.items() if key != 'rng'}


@pytest.fixture
def build(tmp_path):
    """Build a reader of hand-written annotations."""

    def builder(reader, *annotations, **options):
        (tmp_path / 'pix2cap_coco_train.json').write_text(json.dumps(dict(annotations=annotations)))
        for folder in ('images', 'maps'):
            (tmp_path / folder).mkdir(exist_ok=True)
        if reader is Pix2CapSegDataset:
            options.setdefault('questions', QUESTIONS)
        prefix = dict(img_path='images', seg_map_path='maps')
        return reader(data_root=str(tmp_path), data_prefix=prefix, **options)

    return builder


@pytest.fixture(params=['train', 'val', 'test'])
def shapes(request, world, tmp_path):
    """Options for a split of the world, and the (description, true mask) pairs of every image."""
    images = read_world(world)
    pix2cap.write(images, world, tmp_path, np.random.default_rng(0))
    truth = {
        str(world / 'images' / image.file_name): [
            (item.description, decode_mask(item.segmentation, image.height, image.width, None, 'm'))
            for item in image.objects
        ]
        for image in images
    }
    prefix = dict(img_path=f'{world}/images', seg_map_path=f'{tmp_path}/panoptic_{request.param}')
    cfg = dict(
        ann_file=f'{tmp_path}/pix2cap_coco_{request.param}.json',
        data_prefix=prefix,
        pipeline=[LoadImage(), LoadMasks(), LoadVisualPrompts()],
    )
    return cfg, truth


def test_segmentation_of_shapes_world(shapes):
    cfg, truth = shapes
    for sample in Pix2CapSegDataset(**cfg, questions=QUESTIONS, num_turns=30):
        expected = truth[sample['img_path']]
        assert len(sample['conversation']) == len(expected), 'the background is not described'
        for turn, mask in zip(sample['conversation'], sample['gt_masks'], strict=True):
            assert any(text in turn['human'] and (mask == true).all() for text, true in expected)
        assert len(sample['prompt_masks']) == 0


def test_regions_of_shapes_world(shapes):
    cfg, truth = shapes
    for sample in Pix2CapRegionDataset(**cfg, absent_probability=0):
        expected = truth[sample['img_path']]
        marked = dict(zip(sample['prompt_ids'], sample['prompt_masks'], strict=True))
        assert len(sample['conversation']) == len(marked) and not len(sample['gt_masks'])
        for turn in sample['conversation']:
            token, text = turn['gpt'].split(': ', 1)
            assert token in turn['human']
            mask = marked[int(token[len('<Prompt') : -1])]
            assert any(name in text and (mask == true).all() for name, true in expected)


@pytest.mark.parametrize('reader', READERS)
def test_short_and_missing_descriptions_are_left_out(build, reader):
    described = entry('12345', '123456', '', None, '  12345  ')
    described['segments_info'].append(dict(id=9))
    described['segments_info'].append(dict(id=10, description='nothing', area=0))
    dataset = build(reader, described, entry('short', image_id=8))
    assert len(dataset) == 1 and dataset.skipped == {}
    assert [s['id'] for s in dataset.get_data_info(0)['segments']] == [2]


def test_a_turn_asks_for_a_description_and_gets_its_mask(build):
    dataset = build(Pix2CapSegDataset, entry(*(f'thing {{x}} {i}' for i in range(1, 8))))
    seen, questions, answers = Counter(), set(), set()
    for i in range(100):
        record = dataset[i]
        assert len(record['conversation']) == len(record['masks']) == 5 and not record['prompts']
        numbers = [int(turn['human'][-1]) for turn in record['conversation']]
        assert [mask['ids'] for mask in record['masks']] == [[n] for n in numbers]
        assert len(set(numbers)) == 5
        seen.update([tuple(numbers)])
        questions |= {turn['human'][:-1] for turn in record['conversation']}
        answers |= {turn['gpt'] for turn in record['conversation']}
    assert len(seen) > 90, 'shuffled'
    assert questions == {q.replace('{x}', 'thing {x} ') for q in QUESTIONS}
    assert answers == set(load_templates('segmentation_answers'))
    assert record['meta'] == dict(
        sample_id='Pix2CapSegDataset/7', dataset='Pix2CapSegDataset', task='refseg'
    )
    assert record['masks'][0]['png'] == f'{dataset.data_root}/maps/000000000007.png'
    assert record['img_path'] == f'{dataset.data_root}/images/000000000007.jpg'
    assert len(dataset.record(0, np.random.default_rng(0), num_turns=2)['masks']) == 2


def test_regions_are_one_to_five_with_random_ids(build):
    dataset = build(
        Pix2CapRegionDataset, entry(*(f'thing {i}' for i in range(1, 8))), absent_probability=0
    )
    counts, used = Counter(), set()
    for i in range(400):
        record = dataset[i]
        prompts = {p['id']: p['mask']['ids'] for p in record['prompts']}
        counts[len(prompts)] += 1
        used |= set(prompts)
        assert record['masks'] == [] and len(record['conversation']) == len(prompts)
        assert {turn['gpt'] for turn in record['conversation']} == {
            f'<Prompt{k}>: thing {number}' for k, (number,) in prompts.items()
        }
    assert set(counts) == {1, 2, 3, 4, 5} and min(counts.values()) > 48  # 80 expected
    assert used == set(range(15))
    sizes = {
        len(dataset.record(0, np.random.default_rng(i), num_turns=6)['prompts']) for i in range(20)
    }
    assert sizes == {6}, 'a number asked for is given'


def test_never_more_regions_than_prompts(build):
    dataset = build(Pix2CapRegionDataset, entry(*(f'thing {i}' for i in range(40))), num_turns=40)
    assert max(len(dataset[i]['prompts']) for i in range(60)) == 15


def test_questions_suffix_and_absent_prompts(build):
    dataset = build(
        Pix2CapRegionDataset,
        entry('a red bus'),
        questions=['What is <region>?'],
        question_suffix=' Be brief.',
        absent_probability=1,
    )
    record = dataset[0]
    k = record['prompts'][0]['id']
    absent = 0 if k else 1
    assert record['conversation'] == [
        dict(
            human=f'What is <Prompt{absent}>? Be brief.',
            gpt=f'<Prompt{absent}> is not in the image.',
        ),
        dict(human=f'What is <Prompt{k}>? Be brief.', gpt=f'<Prompt{k}>: a red bus'),
    ]
    dataset = build(Pix2CapRegionDataset, entry('a red bus'))
    asked = {dataset[i]['conversation'][-1]['human'] for i in range(400)}
    assert len({text.split('<')[0] + text.split('>')[1] for text in asked}) == 30


def test_a_test_item_is_a_segment(build):
    entries = entry('a red bus', 'tiny', 'a blue bus'), entry('a green bus', image_id=8)
    first, second, third = build(Pix2CapSegDataset, *entries, test_mode=True, num_turns=1)
    assert first['conversation'] == [dict(human='Segment: a red bus', gpt='It is [SEG].')]
    assert first['meta'] == dict(
        sample_id='Pix2CapSegDataset/7_1',
        dataset='Pix2CapSegDataset',
        task='refseg',
        image_id=7,
        segment_id=1,
        expression='a red bus',
    )
    assert second['masks'][0]['ids'] == [3] and third['meta']['image_id'] == 8
    regions = build(Pix2CapRegionDataset, *entries, test_mode=True, absent_probability=1)
    question = load_templates('region_questions')[0].replace('<region>', '<Prompt0>')
    assert len(regions) == 3 and plain(regions[1]) == plain(regions[4]), 'nothing is drawn'
    assert regions[1]['conversation'] == [dict(human=question, gpt='<Prompt0>: a blue bus')]
    assert [(p['id'], p['mask']['ids']) for p in regions[1]['prompts']] == [(0, [3])]
    assert regions[1]['meta']['references'] == ['a blue bus']


@pytest.mark.parametrize('reader', READERS)
def test_draws_depend_on_seed_and_index_only(build, reader):
    many = entry(*(f'thing {i}' for i in range(12)))
    dataset, again, other = (build(reader, many, seed=seed) for seed in (3, 3, 4))
    records, same, changed = ([plain(d[i]) for i in range(6)] for d in (dataset, again, other))
    assert records == same and records != changed
    assert len({str(record['conversation']) for record in records}) > 4


@pytest.mark.parametrize('reader', READERS)
def test_damage_is_named(build, reader, tmp_path):
    broken, good = entry(['a', 'list']), entry('a red bus')
    dataset = build(reader, broken, good)
    assert len(dataset) == 1
    assert 'description: must be a text' in next(iter(dataset.skipped))
    with pytest.raises(BadSampleError, match=r'pix2cap_coco_train.json: annotations\[0\]'):
        build(reader, broken, good, test_mode=True)
    with pytest.raises(AnnotationError, match='has no item'):
        build(reader, entry('short'))
    with pytest.raises(AnnotationError, match=r'annotations\[1\].*segments_info'):
        build(reader, good, dict(file_name='a.png', image_id=1))
    with pytest.raises(MissingFilesError, match=r'data_prefix.seg_map_path'):
        reader(
            data_prefix=dict(img_path='images'), questions=['<region> {x}'], data_root=str(tmp_path)
        )
