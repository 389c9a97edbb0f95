"""Short region captions of RefCOCOg: training on references, evaluation on annotations."""

import json

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.refcocog_region import RefCOCOgRegionDataset
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.regions import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

QUESTION = (
    'Can you provide me with a detailed description of the region in the picture marked '
    'by <Prompt0>?'
)


def polygon(number):
    return [[float(number), 1.0, 5.0, 1.0, 5.0, 5.0]]


def reference(ref_id, ann_id, *sentences, image_id=1, split='train'):
    return dict(
        ref_id=ref_id,
        ann_id=ann_id,
        image_id=image_id,
        split=split,
        sentences=[dict(raw=s, sent_id=10 * ref_id + i) for i, s in enumerate(sentences)],
    )


@pytest.fixture
def train_cfg(write_refcoco):
    """Config of a training set from references to the objects 1, 2, 3 of one image."""

    def make(refs, **options):
        cfg = write_refcoco(
            [dict(id=1, file_name='1.jpg', height=8, width=10)],
            [dict(id=i, image_id=1, segmentation=polygon(i)) for i in (1, 2, 3)],
            refs,
        )
        return dict(cfg, type='RefCOCOgRegionDataset', split_file='refs(unc).p', **options)

    return make


@pytest.fixture
def test_cfg(tmp_path):
    """Config of an evaluation set; the annotations stand in another order than the images."""

    def make(images=None, annotations=None, captions=None, **options):
        if images is None:
            images = [
                dict(id=10, file_name='x.jpg', height=8, width=10, caption='an x'),
                dict(id=20, file_name='y.jpg', height=8, width=10),
            ]
        if annotations is None:
            annotations = [
                dict(id=1, image_id=20, segmentation=polygon(1)),
                dict(id=2, image_id=10, segmentation=polygon(2)),
                dict(id=10, image_id=10, segmentation=polygon(3), caption='own'),
            ]
        (tmp_path / 'masks.json').write_text(
            json.dumps(dict(images=images, annotations=annotations))
        )
        if captions is not None:
            (tmp_path / 'captions.json').write_text(json.dumps(dict(annotations=captions)))
            options['captions_file'] = 'captions.json'
        return dict(
            type='RefCOCOgRegionDataset',
            ann_file='masks.json',
            data_root=str(tmp_path),
            test_mode=True,
            **options,
        )

    return make


def test_training_asks_the_short_question_only(train_cfg):
    refs = [reference(i, i, f'Object {i}.') for i in (1, 2, 3)]
    dataset = DATASETS.build(train_cfg(refs, absent_probability=0))
    counts = set()
    for i in range(40):
        sample = dataset[i]
        counts.add(len(sample['prompts']))
        assert sample['masks'] == [] and (sample['height'], sample['width']) == (8, 10)
        for prompt, turn in zip(sample['prompts'], sample['conversation']):
            token = f'<Prompt{prompt["id"]}>'
            assert turn == dict(
                human=f'Please give me a short description of {token}.',
                gpt=f'{token}: object {int(prompt["mask"][0][0])}',
            )
    assert len(dataset) == 1 and counts == {1, 2, 3}


def test_an_object_of_several_references_is_marked_once(train_cfg):
    refs = [reference(1, 1, 'a', 'b'), reference(2, 1, 'c'), reference(3, 2, 'd')]
    dataset = DATASETS.build(train_cfg(refs, absent_probability=0))
    seen = set()
    for i in range(60):
        masks = [prompt['mask'] for prompt in dataset[i]['prompts']]
        assert len(masks) <= 2 and polygon(3) not in masks
        assert all(masks.count(mask) == 1 for mask in masks)
        seen |= {turn['gpt'][-1] for turn in dataset[i]['conversation']}
    assert seen == set('abcd')
    frozen = DATASETS.build(train_cfg(refs, absent_probability=0, paper=True))
    assert {t['gpt'][-1] for i in range(40) for t in frozen[i]['conversation']} == {'c', 'd'}


def test_training_draws_depend_on_seed_and_index_only(train_cfg):
    refs = [reference(i, i, f'a {i}', f'b {i}') for i in (1, 2, 3)]
    first, second = (DATASETS.build(train_cfg(refs, seed=3)) for _ in range(2))
    texts = [json.dumps(first[i]['conversation']) for i in range(10)]
    assert texts == [json.dumps(second[i]['conversation']) for i in range(10)]
    assert len(set(texts)) > 5


def test_empty_expressions_are_counted(train_cfg):
    dataset = DATASETS.build(train_cfg([reference(1, 1, '.', 'a'), reference(2, 2, ' ')]))
    assert dataset.skipped == {'empty expression': 2}
    assert all(prompt['mask'] == polygon(1) for prompt in dataset[0]['prompts'])


@pytest.mark.parametrize(
    'refs, key',
    [
        ({}, 'split_file'),
        ([reference(1, 99, 'a')], r'refs\[0\].ann_id'),
        ([reference(1, 1, 'a', split='x')], 'split'),
        ([reference(1, 1, '')], 'no item'),
    ],
)
def test_damaged_references_are_named(train_cfg, refs, key):
    with pytest.raises(AnnotationError, match=key):
        DATASETS.build(train_cfg(refs))


def test_an_evaluation_item_is_an_annotation_with_its_own_image_id(test_cfg, tmp_path):
    dataset = DATASETS.build(test_cfg(name='dev'))
    assert len(dataset) == 3
    first, second, third = dataset
    assert first['img_path'] == str(tmp_path / 'y.jpg')
    assert first['conversation'] == [dict(human=QUESTION, gpt='')]
    assert first['prompts'] == [dict(id=0, mask=polygon(1))] and first['masks'] == []
    assert first['meta'] == dict(
        sample_id='dev/1', dataset='dev', task='region', image_id=20, ann_id=1
    )
    assert second['meta']['image_id'] == 10 and second['meta']['references'] == ['an x']
    assert second['conversation'][0]['gpt'] == '<Prompt0>: an x'
    assert third['meta']['references'] == ['own']
    assert (third['meta']['image_id'], third['meta']['ann_id']) == (10, 10)


def test_evaluation_question_is_an_argument(test_cfg):
    dataset = DATASETS.build(
        test_cfg(test_question='Please give me a short description of <Prompt0>.')
    )
    assert dataset[0]['conversation'][0]['human'].startswith('Please give me a short')


def test_references_come_from_the_captions_file(test_cfg):
    captions = [
        dict(image_id=10, caption=' one '),
        dict(image_id=20, caption='y'),
        dict(image_id=10, caption='two'),
    ]
    dataset = DATASETS.build(test_cfg(captions=captions))
    assert [sample['meta']['references'] for sample in dataset] == [
        ['y'],
        ['one', 'two'],
        ['one', 'two'],
    ]
    with pytest.raises(BadSampleError, match='captions.json.*no caption of image_id 20'):
        DATASETS.build(test_cfg(captions=captions[:1]))


@pytest.mark.parametrize(
    'annotation, key',
    [
        (dict(id=1, image_id=99, segmentation=polygon(1)), r'annotations\[0\].image_id.*99'),
        (dict(id=1, image_id=10, segmentation=[]), r'annotations\[0\].segmentation'),
        (dict(id=1, image_id=10), r'annotations\[0\].*segmentation'),
    ],
)
def test_broken_annotations_are_named(test_cfg, annotation, key):
    with pytest.raises(BadSampleError, match=key):
        DATASETS.build(test_cfg(annotations=[annotation]))


@pytest.mark.parametrize(
    'options, key',
    [
        (dict(images=[]), 'image_id'),
        (dict(images=[], annotations=[]), 'no item'),
        (dict(annotations={}), 'must be a list'),
        (dict(images=[dict(id=1)]), r'images\[0\].*file_name'),
        (dict(captions=[dict(image_id=10)]), r'annotations\[0\].*caption'),
        (dict(captions=[dict(image_id=10, caption=3)]), r'annotations\[0\].caption'),
    ],
)
def test_damaged_evaluation_files_are_named(test_cfg, options, key):
    with pytest.raises(BadSampleError, match=key):
        DATASETS.build(test_cfg(**options))


@pytest.mark.parametrize(
    'test_mode, keys', [(False, ['ann_file', 'split_file']), (True, ['ann_file', 'captions_file'])]
)
def test_only_the_files_of_the_mode_are_needed(tmp_path, test_mode, keys):
    with pytest.raises(MissingFilesError) as caught:
        RefCOCOgRegionDataset(data_root=str(tmp_path), captions_file='c.json', test_mode=test_mode)
    assert [key for key, _ in caught.value.missing] == keys


def test_reads_shapes_world(world, tmp_path):
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    objects = {item.ann_id: (image, item) for image in images for item in image.objects}
    masks = {
        (
            str(world / 'images' / image.file_name),
            decode_mask(item.segmentation, image.height, image.width, None, 'm').tobytes(),
        ): item
        for image, item in objects.values()
    }
    cfg = dict(
        type='RefCOCOgRegionDataset',
        data_prefix=dict(img_path=str(world / 'images')),
        absent_probability=0,
        pipeline=[dict(type='LoadImage'), dict(type='LoadVisualPrompts')],
    )
    train = DATASETS.build(
        dict(
            cfg,
            ann_file=str(world / 'refcoco/instances.json'),
            split_file=str(world / 'refcoco/refs(unc).p'),
        )
    )
    assert len(train) == 24
    for sample in train:
        texts = dict(turn['gpt'].split('>: ') for turn in sample['conversation'])
        for k, mask in zip(sample['prompt_ids'], sample['prompt_masks']):
            item = masks[sample['img_path'], mask.tobytes()]
            assert texts[f'<Prompt{k}'] in item.sentences
    test = DATASETS.build(
        dict(
            cfg,
            ann_file=str(tmp_path / 'finetune_refcocog_test_with_mask.json'),
            test_mode=True,
            captions_file=str(tmp_path / 'finetune_refcocog_test_captions.json'),
        )
    )
    assert (
        len(test)
        == len({sample['meta']['image_id'] for sample in test})
        == sum(len(image.objects) for image in images if image.split == 'test')
    )
    for sample in test:
        image, item = objects[sample['meta']['ann_id']]
        assert sample['img_path'].endswith(image.file_name)
        assert masks[sample['img_path'], sample['prompt_masks'][0].tobytes()] is item
        assert sample['meta']['references'] == [f'a {item.description}', *item.sentences]
