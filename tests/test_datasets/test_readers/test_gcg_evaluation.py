"""The benchmark of grounded captions: the two files of a split, and what the metric makes of it."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.gcg import TEST_QUESTION
from pixelsail_mm.datasets.readers.gcg_evaluation import GCGEvaluationDataset, tag_labels
from pixelsail_mm.errors import AnnotationError, BadSampleError, MissingFilesError
from pixelsail_mm.evaluation.metrics import GCGMetric
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.gcg import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world
from tests.test_datasets.test_readers.loading import load

CAPTION = 'A dog chases a red cat.'
BOTH = '<p> A dog </p> [SEG] chases <p> a red cat </p> [SEG].'
TAGGED = re.compile(r'<p> (.*?) </p> \[SEG\]', re.DOTALL)


def caption(*labels, image_id='sa_1', text=CAPTION):
    return dict(id=1, image_id=image_id, caption=text, labels=list(labels))


def mask(name, image_id='sa_1'):
    return dict(id=1, image_id=image_id, category_id=1, segmentation=name)


@pytest.fixture
def cfg(tmp_path):
    """Write the two files and give the reader's config."""
    (tmp_path / 'images').mkdir()

    def writer(captions, masks, images=(dict(id='sa_1'),), **options):
        for name, content in (
            ('captions', dict(images=list(images), annotations=captions)),
            ('masks', dict(images=list(images), annotations=masks)),
        ):
            (tmp_path / f'{name}.json').write_text(json.dumps(content))
        return dict(
            dict(
                type='GCGEvaluationDataset',
                ann_file='masks.json',
                captions_file='captions.json',
                data_root=str(tmp_path),
                data_prefix=dict(img_path='images'),
            ),
            **options,
        )

    return writer


# The answer.


@pytest.mark.parametrize(
    'text, labels, answer, order',
    [
        (CAPTION, ['A dog', 'a red cat'], BOTH, [0, 1]),
        (CAPTION, ['a red cat', 'A dog'], BOTH, [1, 0]),
        (CAPTION, [' a dog', 'A RED CAT'], BOTH, [0, 1]),
        (
            'a man by a man',
            ['a man', 'a man'],
            '<p> a man </p> [SEG] by <p> a man </p> [SEG]',
            [0, 1],
        ),
        ('a man', ['a man', 'a man'], '<p> a man </p> [SEG] <p> a man </p> [SEG]', [0, 1]),
        (
            'a man in a red hat',
            ['a', 'red', 'a red hat'],
            '<p> a </p> [SEG] man in <p> a red hat </p> [SEG] <p> red </p> [SEG]',
            [0, 2, 1],
        ),
        ('a woman, a man', ['man'], 'a woman, a <p> man </p> [SEG]', [0]),
        (
            'a dog',
            ['', 'cow', 'dog'],
            'a <p> dog </p> [SEG] <p>  </p> [SEG] <p> cow </p> [SEG]',
            [2, 0, 1],
        ),
        ('"a dog"', ['a dog', '"'], '<p> a dog </p> [SEG] <p> " </p> [SEG]', [0, 1]),
        ('C++ (new)', ['(new)'], 'C++ <p> (new) </p> [SEG]', [0]),
        ('nothing', [], 'nothing', []),
    ],
)
def test_labels_are_tagged_where_they_stand_else_at_the_end(text, labels, answer, order):
    assert tag_labels(text, labels) == (answer, order)


@given(st.text('ab "\n.', max_size=25), st.lists(st.text('ab "\n.', max_size=6), max_size=6))
def test_the_answer_holds_every_label_once_and_the_caption(text, labels):
    answer, order = tag_labels(text, labels)
    assert sorted(order) == list(range(len(labels)))
    phrases = TAGGED.findall(answer)
    assert [phrase.strip(' "\n') for phrase in phrases] == [labels[i].strip(' "\n') for i in order]
    assert TAGGED.sub(r'\1', answer).startswith(text.strip(' "\n'))


# What an item is.


def test_an_item_has_question_answer_masks_and_what_the_metric_reads(cfg, tmp_path):
    dataset = DATASETS.build(cfg([caption('a red cat', 'A dog')], [mask('cat'), mask('dog')]))
    assert isinstance(dataset, GCGEvaluationDataset) and len(dataset) == 1
    assert dataset.record(0, np.random.default_rng(0)) == dict(
        img_path=str(tmp_path / 'images/sa_1.jpg'),
        masks=['dog', 'cat'],
        prompts=[],
        conversation=[dict(human=TEST_QUESTION, gpt=BOTH)],
        meta=dict(
            sample_id='GCGEvaluationDataset/0',
            dataset='GCGEvaluationDataset',
            task='gcg',
            image_id='sa_1',
            caption=CAPTION,
            references=[CAPTION],
            phrases=['A dog', 'a red cat'],
        ),
    )


def test_masks_belong_to_the_labels_of_their_image_in_the_order_of_the_file(cfg):
    images = [dict(id='sa_2'), dict(id='sa_1'), dict(id='sa_3')]
    captions = [
        caption('A dog', 'a red cat'),
        caption(image_id='sa_3', text='empty'),
        caption('cow', image_id='sa_2', text='a cow'),
    ]
    masks = [mask('dog'), mask('cow', 'sa_2'), mask('cat')]
    samples = list(DATASETS.build(cfg(captions, masks, images)))
    assert [sample['meta']['image_id'] for sample in samples] == ['sa_2', 'sa_1', 'sa_3']
    assert [sample['masks'] for sample in samples] == [['cow'], ['dog', 'cat'], []]
    assert samples[2]['conversation'][0]['gpt'] == 'empty' and samples[2]['meta']['phrases'] == []


def test_several_captions_are_references_and_the_first_one_has_the_labels(cfg):
    captions = [caption('A dog'), dict(image_id='sa_1', caption=' It runs. ')]
    sample = DATASETS.build(cfg(captions, [mask('dog')]))[0]
    assert sample['meta']['references'] == [CAPTION, 'It runs.']
    assert sample['meta']['caption'] == CAPTION and sample['meta']['phrases'] == ['A dog']


def test_the_file_of_an_image_is_its_id_and_the_suffix(cfg, tmp_path):
    captions = [caption(image_id='v.1/a b'), caption(image_id=42)]
    options = dict(images=[dict(id='v.1/a b'), dict(id=42)], img_suffix='.png')
    samples = list(DATASETS.build(cfg(captions, [], **options)))
    assert [sample['img_path'] for sample in samples] == [
        str(tmp_path / 'images/v.1/a b.png'),
        str(tmp_path / 'images/42.png'),
    ]
    assert [sample['meta']['image_id'] for sample in samples] == ['v.1/a b', 42]


def test_numbers_of_images_may_be_texts_in_one_file(cfg):
    dataset = DATASETS.build(cfg([caption('A dog', image_id='7')], [mask('dog', 7)], [dict(id=7)]))
    assert dataset[0]['masks'] == ['dog']


def test_the_question_is_an_option_and_draws_do_not_matter(cfg):
    options = cfg([caption('A dog')], [mask('dog')], test_question='five     blanks?')
    dataset = DATASETS.build(options)
    assert dataset[0]['conversation'] == dataset[5]['conversation']
    assert dataset[0]['conversation'][0]['human'] == 'five     blanks?'


def test_it_is_for_evaluation_only(cfg):
    options = cfg([caption()], [])
    assert DATASETS.build(options).test_mode and DATASETS.build(dict(options, test_mode=True))
    with pytest.raises(ValueError, match='for evaluation only; remove test_mode=False'):
        DATASETS.build(dict(options, test_mode=False))


# Faults.


@pytest.mark.parametrize(
    'labels, masks',
    [
        (['A dog'], []),
        ([], ['dog']),
        (['A dog', 'a red cat'], ['dog']),
        (['A dog'], ['dog', 'cat']),
    ],
)
def test_as_many_labels_as_masks(cfg, labels, masks):
    options = cfg([caption(*labels)], [mask(name) for name in masks])
    with pytest.raises(
        BadSampleError,
        match=rf'captions.json: annotations\[0\].labels: has '
        rf'{len(labels)} phrases, but .*masks.json has {len(masks)} masks of '
        'image_id sa_1',
    ):
        DATASETS.build(options)


@pytest.mark.parametrize(
    'fault, key',
    [
        (dict(labels=None), r'labels: must be the list'),
        (dict(labels='A dog'), 'labels: must be'),
        (dict(labels=[3]), r'labels\[0\]: must be a text'),
        (dict(labels=['a [SEG]']), r'labels\[0\]: contains \[SEG\]'),
        (dict(caption=None), 'caption: must be a text'),
        (dict(caption=' '), 'caption: is empty'),
        (dict(caption='a <p> dog'), 'caption: contains <p>'),
    ],
)
def test_broken_captions_are_named(cfg, fault, key):
    entry = dict(caption('dog', image_id='sa_2'), **fault)
    images = [dict(id='sa_1'), dict(id='sa_2')]
    options = cfg([caption('A dog'), entry], [mask('a'), mask('b', 'sa_2')], images)
    with pytest.raises(BadSampleError, match=rf'captions.json: annotations\[1\].{key}'):
        DATASETS.build(options)


def test_a_caption_without_labels_is_not_one_of_no_labels(cfg):
    entry = caption()
    del entry['labels']
    with pytest.raises(BadSampleError, match='labels: must be the list'):
        DATASETS.build(cfg([entry], []))


def test_the_two_files_must_belong_together(cfg):
    with pytest.raises(BadSampleError, match='captions.json: .*no caption of image_id sa_1'):
        DATASETS.build(cfg([], []))
    options = cfg([caption('A dog')], [mask('a'), mask('b', 'sa_9'), mask('c', 'sa_9')])
    with pytest.raises(
        AnnotationError,
        match=r'masks.json: annotations\[1\].image_id: image sa_9 '
        r'is not in .*captions.json',
    ):
        DATASETS.build(options)


@pytest.mark.parametrize(
    'name, content, key',
    [
        ('masks', '[]', 'JSON dict'),
        ('masks', '{"annotations": [', 'not valid JSON'),
        ('masks', dict(images=[]), 'annotations'),
        ('masks', dict(annotations=[dict(image_id='sa_1')]), r'annotations\[0\].*segmentation'),
        ('masks', dict(annotations=[3]), r'annotations\[0\]: must be a dict'),
        ('captions', dict(annotations=[]), 'images'),
        ('captions', dict(images={}, annotations=[]), 'must be a list'),
        ('captions', dict(images=[{}], annotations=[]), r'images\[0\].*id'),
        (
            'captions',
            dict(images=[dict(id=None)], annotations=[]),
            r'images\[0\].id: must be the name',
        ),
        ('captions', dict(images=[dict(id='')], annotations=[]), r'images\[0\].id'),
        ('captions', dict(images=[dict(id=True)], annotations=[]), r'images\[0\].id'),
        ('captions', dict(images=[], annotations=[dict(image_id=1)]), r'annotations\[0\].*caption'),
    ],
)
def test_damaged_files_are_named(cfg, tmp_path, name, content, key):
    options = cfg([caption('A dog')], [mask('dog')])
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / f'{name}.json').write_text(text)
    with pytest.raises(AnnotationError, match=rf'{name}.json: .*{key}'):
        DATASETS.build(options)


def test_an_empty_data_set(cfg):
    with pytest.raises(AnnotationError, match='no item'):
        DATASETS.build(cfg([], [], images=[]))


def test_both_files_must_exist(cfg):
    options = cfg([caption()], [], captions_file='other.json', ann_file='mask.json')
    with pytest.raises(MissingFilesError, match=r'(?s)mask.json.*other.json +\(captions_file\)'):
        DATASETS.build(options)


# Files of ShapesWorld, and the metric.


@pytest.fixture
def read_split(world, tmp_path):
    """Reader of a split of the world."""
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))

    def read(split, **options):
        suffix = f'.{images[0].file_name.split(".")[-1]}'
        return DATASETS.build(
            dict(
                type='GCGEvaluationDataset',
                ann_file=f'{split}_gcg_coco_mask_gt.json',
                captions_file=f'{split}_gcg_coco_caption_gt.json',
                img_suffix=suffix,
                data_root=str(tmp_path / 'annotations' / 'val_test'),
                data_prefix=dict(img_path=str(world / 'images')),
                **options,
            )
        )

    return read


@pytest.mark.parametrize('split', ['val', 'test'])
def test_reads_shapes_world(world, world_counts, read_split, split):
    by_file = {str(world / 'images' / image.file_name): image for image in read_world(world)}
    dataset = read_split(split)
    assert len(dataset) == world_counts[split]
    for sample in dataset:
        image = by_file[sample['img_path']]
        assert image.split == split
        assert image.file_name.startswith(f'{sample["meta"]["image_id"]}.')
        by_name = {
            f'a {item.description}': decode_mask(
                item.segmentation, image.height, image.width, None, 'm'
            )
            for item in image.objects
        }
        results = load(sample)
        phrases = TAGGED.findall(sample['conversation'][0]['gpt'])
        assert phrases == sample['meta']['phrases'] and len(phrases) >= 2
        for phrase, found in zip(phrases, results['gt_masks'], strict=True):
            assert (found == by_name[phrase.lower()]).all()
        assert TAGGED.sub(r'\1', sample['conversation'][0]['gpt']) == sample['meta']['caption']
    assert not dataset.skipped


def predictions(dataset, answer=lambda record: record['conversation'][0]['gpt']):
    """What a model makes that says and shows the truth, or says something else."""
    for record in dataset:
        results = load(record)
        yield dict(
            record['meta'],
            pred_text=answer(record),
            gt_masks=results['gt_masks'],
            pred_masks=results['gt_masks'],
        )


def evaluate(samples, **options):
    samples = list(samples)
    metric = GCGMetric(caption_metrics=(), **options)
    metric.process(None, samples)
    return metric.evaluate(size=len(samples))


@pytest.mark.parametrize('protocol', ['strict', 'paper'])
def test_a_perfect_prediction_is_perfect(read_split, protocol):
    values = evaluate(predictions(read_split('test')), protocol=protocol)
    for name in ('AP50', 'AP', 'mIoU', 'recall_token_f1'):
        assert values[f'gcg/{name}'] == pytest.approx(1), name
    assert values['gcg/mismatched'] == 0


def test_phrases_that_name_the_wrong_masks_are_not_found(read_split):
    def turned(record):
        names = record['meta']['phrases']
        return ' '.join(f'<p> {name} </p> [SEG]' for name in names[1:] + names[:1])

    values = evaluate(predictions(read_split('test'), turned), similarity_threshold=1)
    assert values['gcg/recall_token_f1'] == 0 and values['gcg/AP50'] == pytest.approx(1)


def test_labels_that_the_caption_lacks_can_be_found_too(cfg, tmp_path):
    """The pairs are those of the file, whatever stands where in the answer."""
    from PIL import Image

    Image.new('RGB', (6, 4)).save(tmp_path / 'images/sa_1.png')
    square = [[[x, 0, x + 1, 0, x + 1, 3, x, 3]] for x in (0, 2, 4)]
    dataset = DATASETS.build(
        cfg([caption('cow', 'a red cat', 'A dog')], list(map(mask, square)), img_suffix='.png')
    )
    record = dataset[0]
    assert record['meta']['phrases'] == ['A dog', 'a red cat', 'cow']
    assert record['masks'] == [square[2], square[1], square[0]]
    values = evaluate(predictions(dataset))
    assert values['gcg/recall_token_f1'] == values['gcg/mIoU'] == 1
