"""The readers of PerBench."""

import json

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.perbench import PerBenchVRESDataset  # noqa: F401  registers the readers
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.perbench import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world
from tests.test_datasets.test_readers.loading import load

MASK = dict(size=[6, 8], counts='first')
OTHER = dict(size=[6, 8], counts='second')
QUESTION = 'What colour is it?\nA. red\nB. dark blue\nC. green\n'


@pytest.fixture
def write(tmp_path):
    (tmp_path / 'images').mkdir()

    def writer(kind, entries, **options):
        (tmp_path / 'bench.json').write_text(json.dumps(entries))
        return dict(
            type=f'PerBench{kind}Dataset',
            ann_file='bench.json',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images'),
            **options,
        )

    return writer


def caption_entry(*captions):
    return dict(
        image_name='sa_1.jpg',
        object_annotations=[
            dict(segmentation=mask, caption=text) for text, mask in zip(captions, (MASK, OTHER))
        ],
    )


def mcq_entry(question=QUESTION, answer='B'):
    return dict(image_name='sa_1.jpg', mcqs=[dict(object=MASK, question=question, answer=answer)])


def vres_entry(question, answer, *tags):
    return dict(
        image_name='sa_1.jpg',
        question=question,
        answer=answer,
        segmentations={tag: f'mask of {tag}' for tag in tags},
    )


def vres(write, *args, **options):
    (sample,) = DATASETS.build(write('VRES', [vres_entry(*args)], **options))
    return sample


def test_captions(write, tmp_path):
    first, second, third = DATASETS.build(
        write('Caption', [caption_entry('A dog.', 'A red cat.'), caption_entry('A tree.')])
    )
    assert first['conversation'] == [
        dict(
            human='Can you provide me with a detailed description of the region in the picture '
            'marked by <Prompt0>? Please provide as detailed as possible.',
            gpt='A dog.',
        )
    ]
    assert second['prompts'] == [dict(id=0, mask=OTHER)] and second['masks'] == []
    assert second['img_path'] == str(tmp_path / 'images/sa_1.jpg')
    assert second['meta'] == dict(
        sample_id='PerBenchCaptionDataset/0_1',
        dataset='PerBenchCaptionDataset',
        task='region',
        image_id='sa_1.jpg',
        references=['A red cat.'],
    )
    assert third['meta']['sample_id'] == 'PerBenchCaptionDataset/1_0'


def test_multiple_choice(write):
    (sample,) = DATASETS.build(write('MCQ', [mcq_entry()], name='bench'))
    assert sample['conversation'] == [
        dict(
            human='Please answer the question according to the <Prompt0>. What colour is it?\n'
            'A. red\nB. dark blue\nC. green\nSelect a correct choice.',
            gpt='B',
        )
    ]
    assert sample['prompts'] == [dict(id=0, mask=MASK)] and sample['masks'] == []
    assert sample['meta'] == dict(
        sample_id='bench/0_0',
        dataset='bench',
        task='mcq',
        answer='B',
        image_id='sa_1.jpg',
        choices=['red', 'dark blue', 'green'],
    )


def test_question_and_instruction_are_joined_without_a_blank(write):
    (sample,) = DATASETS.build(write('MCQ', [mcq_entry('Is it? (A) yes (B) no')]))
    assert sample['conversation'][0]['human'].endswith('(A) yes (B) noSelect a correct choice.')
    assert sample['meta']['choices'] == ['yes', 'no']


def test_tags_of_the_question_are_prompts_and_others_targets(write):
    sample = vres(write, 'What is left of <b>?', 'It is <c>, then <a>.', '<a>', '<b>', '<c>')
    assert sample['conversation'] == [
        dict(human='What is left of <Prompt1>?', gpt='It is [SEG], then [SEG].')
    ]
    assert sample['prompts'] == [dict(id=1, mask='mask of <b>')]
    assert sample['masks'] == ['mask of <c>', 'mask of <a>'], 'order of the answer'
    assert sample['meta'] == dict(
        sample_id='PerBenchVRESDataset/0_0',
        dataset='PerBenchVRESDataset',
        task='refseg',
        image_id='sa_1.jpg',
        targets=['<c>', '<a>'],
        answer_text='It is <c>, then <a>.',
        first_in_file=1,
        retry_prefix='It is [SEG].',
    )


def test_the_release_pairs_in_the_order_of_the_file(write):
    args = ('What is left of <b>?', 'It is <c>, then <a>.', '<a>', '<b>', '<c>')
    sample = vres(write, *args, paper=True)
    assert sample['masks'] == ['mask of <a>', 'mask of <c>']
    assert sample['meta']['targets'] == ['<a>', '<c>'] and sample['meta']['first_in_file'] == 0
    assert sample['conversation'][0]['human'] == 'What is left of <Prompt1>?'
    assert sample['conversation'][0]['gpt'].count('[SEG]') == 2


def test_a_tag_of_both_texts_is_a_prompt(write):
    sample = vres(
        write, 'Which cup does person 1 hold?', 'person 1 holds cup 2.', 'person 1', 'cup 2'
    )
    assert sample['conversation'] == [
        dict(human='Which cup does <Prompt0> hold?', gpt='<Prompt0> holds [SEG].')
    ]
    assert [p['id'] for p in sample['prompts']] == [0] and sample['masks'] == ['mask of cup 2']


def test_long_tags_come_first_and_are_whole_words(write):
    """The release finds obj1 in obj10 and names it <Prompt0> followed by a 0."""
    args = ('What is on obj10?', 'obj1, obj11 and obj1x.', 'obj1', 'obj10', 'obj11', 'obj1x')
    strict = vres(write, *args)
    assert strict['conversation'] == [
        dict(human='What is on <Prompt1>?', gpt='[SEG], [SEG] and [SEG].')
    ]
    assert strict['meta']['targets'] == ['obj1', 'obj11', 'obj1x']
    paper = vres(write, *args, paper=True)
    assert paper['conversation'][0]['human'] == 'What is on <Prompt0>0?'
    assert [p['id'] for p in paper['prompts']] == [0, 1]
    assert paper['meta']['targets'] == ['obj11', 'obj1x']


def test_tags_are_taken_literally_and_overlap_without_harm(write):
    sample = vres(write, 'Is a (b) there?', 'See a (b) c and a.', 'a', 'a (b)', 'a (b) c')
    assert sample['conversation'] == [dict(human='Is <Prompt1> there?', gpt='See [SEG] and [SEG].')]
    assert sample['meta']['targets'] == ['a (b) c', 'a']


def test_a_target_named_twice_is_one_target(write):
    sample = vres(write, 'What?', '<a> and <b>, mostly <a>.', '<b>', '<a>')
    assert sample['meta']['targets'] == ['<a>', '<b>'] and len(sample['masks']) == 2
    assert sample['conversation'][0]['gpt'] == '[SEG] and [SEG], mostly <a>.'


@pytest.mark.parametrize(
    'args, message',
    [
        (
            ('Where is <a>?', 'At <b>.', '<a>', '<b>', '<c>'),
            r"segmentations: the tags \['<c>'\] are n",
        ),
        (('Where is <a>?', 'There.', '<a>'), r'answer: names no target'),
        (
            ('Where is obj10?', 'At obj2.', 'obj1', 'obj2'),
            r"segmentations: the tags \['obj1'\] are n",
        ),
        (('Where?', 'Nowhere.'), r'segmentations: must be a dict of tags'),
        (('Where?', 'Here', ' '), r'segmentations: must be a dict of tags'),
        ((' ', '<a>', '<a>'), r'question: must be a text'),
        (
            ('<t15>?', ' '.join(f'<t{i}>' for i in range(15)), *(f'<t{i}>' for i in range(16))),
            r"segmentations: the tags \['<t15>'\] of the question come after the first 15",
        ),
    ],
)
def test_unusable_entries_are_named(write, args, message):
    good = vres_entry('<a>?', '<b>', '<a>', '<b>')
    with pytest.raises(BadSampleError, match=r'bench.json: \[1\]\.' + message):
        DATASETS.build(write('VRES', [good, vres_entry(*args)]))


def test_many_targets_need_no_prompts(write):
    tags = [f'<t{i}>' for i in range(20)]
    sample = vres(write, 'Where is <t0>?', ' '.join(tags[1:]), *tags)
    assert len(sample['masks']) == 19 and [p['id'] for p in sample['prompts']] == [0]


@pytest.mark.parametrize(
    'kind, entry, message',
    [
        (
            'Caption',
            caption_entry('A dog.') | dict(image_name=3),
            r'\[0\]\.image_name: must be a text',
        ),
        ('Caption', caption_entry(' '), r'\[0\]\.object_annotations\[0\]\.caption: must be a text'),
        (
            'Caption',
            dict(image_name='a', object_annotations={}),
            r'object_annotations: must be a list',
        ),
        (
            'Caption',
            dict(image_name='a', object_annotations=[3]),
            r'annotations\[0\]: must be a dict',
        ),
        ('MCQ', mcq_entry('Is it red?'), r'\[0\]\.mcqs\[0\]\.question: has no options'),
        ('MCQ', mcq_entry(answer=2), r'\[0\]\.mcqs\[0\]\.answer: must be a text'),
        (
            'MCQ',
            dict(image_name='a', mcqs=[{}]),
            r"mcqs\[0\]: lacks \['object', 'question', 'answer'",
        ),
        ('VRES', dict(image_name='a', question='a'), r"\[0\]: lacks \['answer', 'segmentations'\]"),
        ('VRES', 'text', r'\[0\]: must be a dict'),
    ],
)
def test_faults_name_file_and_place(write, kind, entry, message):
    with pytest.raises(BadSampleError, match=r'bench.json: .*' + message):
        DATASETS.build(write(kind, [entry]))


@pytest.mark.parametrize('kind', ['Caption', 'MCQ', 'VRES'])
def test_empty_and_damaged_files(write, tmp_path, kind):
    with pytest.raises(AnnotationError, match='has no item'):
        DATASETS.build(write(kind, []))
    cfg = write(kind, {})
    with pytest.raises(AnnotationError, match='must hold a JSON list'):
        DATASETS.build(cfg)
    (tmp_path / 'bench.json').write_text('[{"image_name": "a"')
    with pytest.raises(AnnotationError, match=r'\[0\]: not valid JSON'):
        DATASETS.build(cfg)


@pytest.mark.parametrize(
    'kind, name', [('Caption', 'Detailed_Caption'), ('MCQ', 'MCQ'), ('VRES', 'VRES')]
)
def test_default_file_and_evaluation_only(tmp_path, kind, name):
    cfg = dict(type=f'PerBench{kind}Dataset', data_root=str(tmp_path), lazy_init=True)
    dataset = DATASETS.build(cfg)
    assert dataset.ann_file == str(tmp_path / f'STBench_{name}.json') and dataset.test_mode
    with pytest.raises(ValueError, match='evaluation only'):
        DATASETS.build(dict(cfg, test_mode=False))


def test_reads_shapes_world(world, tmp_path, world_counts):
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    by_name = {image.file_name: image for image in images if image.split == 'test'}
    num_objects = sum(len(image.objects) for image in by_name.values())

    def objects_of(sample):
        image = by_name[sample['meta']['image_id']]
        return [
            (decode_mask(o.segmentation, image.height, image.width, None, 'm'), o)
            for o in image.objects
        ]

    def under(mask, sample):
        (found,) = [o for true, o in objects_of(sample) if np.array_equal(true, mask)]
        return found.attributes

    cfg = dict(data_root=str(tmp_path), data_prefix=dict(img_path=str(world / 'images')))
    captions, choices, related = (
        [load(record) for record in DATASETS.build(dict(cfg, type=f'PerBench{kind}Dataset'))]
        for kind in ('Caption', 'MCQ', 'VRES')
    )
    assert len(captions) == len(choices) == num_objects
    for sample in captions:
        words = ' '.join(under(sample['prompt_masks'][0], sample).values())
        assert words in sample['meta']['references'][0]
    for sample in choices:
        right = sample['meta']['choices']['ABCD'.index(sample['meta']['answer'])]
        assert right == under(sample['prompt_masks'][0], sample)['colour']
    assert world_counts['test'] * 0.5 < len(related) <= world_counts['test']
    shuffled = 0
    for sample in related:
        question = sample['conversation'][0]['human']
        name = question.split()[5]
        (k,), (marked,) = sample['prompt_ids'], sample['prompt_masks']
        assert question == f'Please segment what has the {name} of <Prompt{k}>.'
        shared = under(marked, sample)[name]
        true = [
            mask
            for mask, o in objects_of(sample)
            if o.attributes[name] == shared and not np.array_equal(mask, marked)
        ]
        # Objects come in the order of the answer, here that of the world.
        assert np.array_equal(sample['gt_masks'], true)
        assert sample['conversation'][0]['gpt'].count('[SEG]') == len(true)
        shuffled += len(true) > 1
    paper = DATASETS.build(dict(cfg, type='PerBenchVRESDataset', paper=True))
    pairs = list(zip(related, map(load, paper)))
    assert shuffled and all(np.array_equal(a['gt_masks'], b['gt_masks'][::-1]) for a, b in pairs)
