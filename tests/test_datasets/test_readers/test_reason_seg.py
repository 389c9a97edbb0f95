"""The ReasonSeg reader: folders, encodings, painted shapes, texts."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.reason_seg import ReasonSegDataset  # registers it
from pixelsail_mm.datasets.transforms import (
    LoadIgnoreMasks,
    LoadImage,
    LoadMasks,
    LoadVisualPrompts,
)
from pixelsail_mm.errors import AnnotationError, BadSampleError, MissingFilesError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats import reason_seg
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

H, W = 12, 16


def square(x, y, side, label='target', **more):
    x2, y2 = x + side - 1, y + side - 1
    return dict(label=label, points=[[x, y], [x2, y], [x2, y2], [x, y2]], **more)


def entry(*texts, sentence=True, shapes=None):
    return dict(
        text=list(texts),
        is_sentence=sentence,
        shapes=[square(2, 2, 4)] if shapes is None else shapes,
    )


@pytest.fixture
def write(tmp_path):
    """Write images with their JSON contents (None: no file) and give the reader's config."""
    folder = tmp_path / 'data' / 'train'
    folder.mkdir(parents=True)

    def writer(encoding='utf-8', **entries):
        for stem, content in entries.items():
            Image.new('RGB', (W, H)).save(folder / f'{stem}.jpg')
            if content is not None:
                text = (
                    content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
                )
                (folder / f'{stem}.json').write_bytes(text.encode(encoding))
        return dict(
            type='ReasonSegDataset',
            data_root=str(tmp_path / 'data'),
            data_prefix=dict(img_path='train'),
        )

    return writer


def draws(dataset, indices):
    return [dict(dataset[i], rng=None) for i in indices]


def questions(record):
    return [turn['human'] for turn in record['conversation']]


def test_sentences_and_phrases_are_asked_differently(write):
    cfg = write(a=entry(' Which one is {x}? '), b=entry('the left one', sentence=False))
    first, second = DATASETS.build(cfg)
    assert first['conversation'] == [
        dict(human='Which one is {x}? Please output segmentation mask.', gpt='It is [SEG].')
    ]
    assert questions(second) == [
        'What is the left one in this image? Please output segmentation mask.'
    ]
    assert first['meta'] == dict(
        sample_id='ReasonSegDataset/a', dataset='ReasonSegDataset', task='reasonseg'
    )
    assert first['img_path'] == os.path.join(cfg['data_root'], 'train', 'a.jpg')
    assert first['prompts'] == [] and 'ignore_masks' not in first


def test_up_to_three_texts_without_replacement(write):
    dataset = DATASETS.build(write(a=entry('q1', 'q2', 'q3', 'q4', 'q5'), b=entry('q1', 'q2')))
    drawn = [questions(dataset[2 * i]) for i in range(30)]
    assert all(len(set(turns)) == len(turns) == 3 for turns in drawn)
    assert {text.split()[0] for turns in drawn for text in turns} == {'q1', 'q2', 'q3', 'q4', 'q5'}
    assert len({tuple(turns) for turns in drawn}) > 10
    assert all(len(questions(dataset[2 * i + 1])) == 2 for i in range(5))
    record = dataset.record(0, np.random.default_rng(0), num_turns=4)
    assert len(record['conversation']) == len(record['masks']) == 4
    two = DATASETS.build(dict(write(), num_turns=2))
    assert len(questions(two[0])) == 2


def test_shapes_become_painted_masks(write):
    shapes = [
        square(2, 2, 4, 'Target'),
        square(0, 0, 9, 'flag'),
        square(3, 3, 2, 'Ignore it'),
        square(9, 9, 2, 'IGNORE'),
        square(0, 0, 3, 'FLAG'),
    ]
    cfg = write(a=entry('q', shapes=shapes))
    painted = [dict(points=shapes[i]['points'], ignore=i > 0) for i in (0, 2, 3)]
    assert DATASETS.build(cfg)[0]['masks'] == [dict(painted=painted)]
    test = DATASETS.build(dict(cfg, test_mode=True))[0]
    assert test['masks'] == [dict(painted=painted)]
    assert test['ignore_masks'] == [dict(painted=painted, part='ignore')]
    loaded = LoadIgnoreMasks()(LoadMasks()(LoadImage()(test)))
    target, ignore = loaded['gt_masks'][0], loaded['ignore_masks'][0]
    assert target.sum() == 16 - 4 and ignore.sum() == 4 + 4 and not (target & ignore).any()


def test_evaluation_asks_the_first_text_only(write):
    cfg = write(a=entry('first', 'second'), b=entry('', 'second', sentence=False))
    with pytest.raises(BadSampleError, match='b.json: text: no text'):
        DATASETS.build(dict(cfg, test_mode=True))
    cfg = write(b=entry('the dog', 'second', sentence=False))
    first, second = DATASETS.build(dict(cfg, test_mode=True, name='val'))
    assert questions(first) == ['first Please output segmentation mask.']
    assert first['meta'] == dict(
        sample_id='val/a',
        dataset='val',
        task='reasonseg',
        expression='first',
        expression_kind='sentence',
    )
    assert second['meta']['expression_kind'] == 'phrase'
    assert len(second['masks']) == len(second['ignore_masks']) == 1


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'cp1252'])
def test_encodings(write, encoding):
    record = DATASETS.build(write(encoding, a=entry('the café’s sign', sentence=False)))[0]
    assert 'the café’s sign' in questions(record)[0]


def test_empty_texts_are_counted(write):
    dataset = DATASETS.build(write(a=entry('', 'kept', ' ')))
    assert questions(dataset[0]) == ['kept Please output segmentation mask.']
    assert dataset.skipped == {'empty expression': 2}


@pytest.mark.parametrize(
    'content, reason',
    [
        (None, 'ann_file: no such file'),
        ('{"text": ["a"', 'not valid JSON'),
        ('[]', 'must be a dict'),
        (dict(text=['a'], shapes=[]), 'lacks .*is_sentence'),
        (entry(), 'text: no text'),
        (entry(' '), 'text: no text'),
        (entry(3), 'must be a list of texts'),
        (dict(entry(), text='a'), 'must be a list of texts'),
        (entry('a', sentence='yes'), 'is_sentence: must be true or false'),
        (entry('a', sentence=[]), 'is_sentence: must be true or false'),
        (entry('a', shapes={}), 'shapes: must be a list'),
        (entry('a', shapes=[3]), r'shapes\[0\]'),
        (entry('a', shapes=[dict(label='x')]), 'lacks .*points'),
        (entry('a', shapes=[dict(label=None, points=[])]), r'shapes\[0\].label: must be a text'),
    ],
)
def test_faulty_entries_are_counted_in_training_and_raised_in_tests(write, content, reason):
    cfg = write(bad=content, good=entry('q'))
    dataset = DATASETS.build(cfg)
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=rf'bad.json: .*{reason}'):
        DATASETS.build(dict(cfg, test_mode=True))


def test_bytes_in_no_encoding_are_named(write):
    cfg = write()
    folder = os.path.join(cfg['data_root'], 'train')
    Image.new('RGB', (W, H)).save(os.path.join(folder, 'a.jpg'))
    with open(os.path.join(folder, 'a.json'), 'wb') as file:
        file.write(b'{"text": "\x81\xff"}')
    with pytest.raises(BadSampleError, match=r'a.json: content: in none of .*cp1252'):
        DATASETS.build(dict(cfg, test_mode=True))


@pytest.mark.parametrize('shapes', [[], [square(1, 1, 3, 'ignore')], [square(1, 1, 3, 'flag')]])
def test_images_without_target_are_left_out_of_training_and_kept_in_tests(write, shapes):
    cfg = write(a=entry('q', shapes=shapes), b=entry('q'))
    assert [r['meta']['sample_id'] for r in DATASETS.build(cfg)] == ['ReasonSegDataset/b']
    record = LoadMasks()(LoadImage()(DATASETS.build(dict(cfg, test_mode=True))[0]))
    assert record['gt_masks'].shape == (1, H, W) and not record['gt_masks'].any()


def test_a_bad_outline_is_named_when_it_is_painted(write):
    dataset = DATASETS.build(write(a=entry('q', shapes=[dict(label='x', points=[[1, 2, 3]])])))
    with pytest.raises(BadSampleError, match=r'a.jpg: masks\[0\].painted\[0\]: a shape needs'):
        LoadMasks()(LoadImage()(dataset[0]))


def test_empty_and_missing_folders_are_named(write, tmp_path):
    cfg = write()
    with pytest.raises(AnnotationError, match=r'train: data_prefix.img_path: has no image.*\*.jpg'):
        DATASETS.build(cfg)
    write(a=None)
    with pytest.raises(AnnotationError, match='ReasonSegDataset has no item'):
        DATASETS.build(cfg)
    with pytest.raises(MissingFilesError) as caught:
        DATASETS.build(dict(cfg, data_prefix=dict(img_path='other')))
    assert [key for key, _ in caught.value.missing] == ['ann_file', 'data_prefix.img_path']


def test_folders_and_suffix_can_differ_and_images_may_lie_in_the_root(write, tmp_path):
    cfg = write(a=entry('q'), b=entry('q'))
    root = tmp_path / 'data'
    (root / 'train').rename(root / 'images')
    (root / 'json').mkdir()
    for stem in 'ab':
        (root / f'images/{stem}.json').rename(root / f'json/{stem}.json')
        (root / f'images/{stem}.jpg').rename(root / f'images/{stem}.png')
    split = dict(cfg, ann_file='json', data_prefix=dict(img_path='images'), img_suffix='.png')
    assert len(DATASETS.build(split)) == 2
    here = dict(
        type='ReasonSegDataset',
        data_root=str(root / 'images'),
        ann_file=str(root / 'json'),
        img_suffix='.png',
    )
    assert os.path.isfile(DATASETS.build(here)[0]['img_path'])


def test_a_kept_index_follows_the_json_files(write, tmp_path):
    cfg = dict(write(a=entry('old', shapes=[square(1, 1, 5)])), index_cache=str(tmp_path / 'kept'))
    assert 'old' in questions(DATASETS.build(cfg)[0])[0]
    write(a=entry('a newer text'))
    assert 'a newer text' in questions(DATASETS.build(cfg)[0])[0]


@pytest.fixture
def shapes(world, tmp_path):
    """Images of a world by their stems, and the config of a reader of a split."""
    images = read_world(world)
    reason_seg.write(images, world, tmp_path, np.random.default_rng(0))
    suffix = os.path.splitext(images[0].file_name)[1]

    def config(split, **more):
        return dict(
            type='ReasonSegDataset',
            data_root=str(tmp_path),
            ann_file=split,
            img_suffix=suffix,
            data_prefix=dict(img_path=str(world / 'images' / split)),
            **more,
        )

    return {image.file_name: image for image in images}, config


@pytest.mark.parametrize('split', ['train', 'test'])
def test_reads_shapes_world(shapes, split, world_counts):
    by_name, config = shapes
    dataset = DATASETS.build(config(split, test_mode=split == 'test'))
    assert len(dataset) == world_counts[split]
    asked = re.compile('What is (.+) in this image|I am looking for (.+), which')
    ignored, kinds = 0, set()
    for record in dataset:
        image = by_name[record['img_path'].split('images/')[1]]
        loaded = LoadVisualPrompts()(LoadIgnoreMasks()(LoadMasks()(LoadImage()(record))))
        objects = [
            decode_mask(item.segmentation, image.height, image.width, None, 'm')
            for item in image.objects
        ]
        for mask, question in zip(loaded['gt_masks'], questions(record), strict=True):
            match = asked.match(question)
            (owner,) = [
                i
                for i, item in enumerate(image.objects)
                if (match[1] or match[2]) in item.sentences
            ]
            assert np.array_equal(mask, objects[owner])
            kinds.add(match[1] is None)
        assert ('ignore_masks' in loaded) == (split == 'test')
        for mask in loaded.get('ignore_masks', []):
            assert not mask.any() or any(np.array_equal(mask, true) for true in objects)
            ignored += mask.any()
    assert kinds == {True, False}
    assert (0 < ignored < len(dataset)) == (split == 'test')


def test_draws_depend_on_seed_and_index(shapes):
    config = shapes[1]
    dataset, same, other = (DATASETS.build(config('train', seed=seed)) for seed in (0, 0, 1))
    assert isinstance(dataset, ReasonSegDataset)
    count = len(dataset)
    assert draws(dataset, range(4)) == draws(same, range(4)) != draws(other, range(4))
    assert draws(dataset, range(4)) != draws(dataset, range(count, count + 4))
