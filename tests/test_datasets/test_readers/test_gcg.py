"""Grounded captions: tagging, the four formats, test mode."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.gcg import (
    NO_MASK,
    OUTSIDE,
    OVERLAPPING,
    TEST_QUESTION,
    ground_caption,
)
from pixelsail_mm.datasets.readers.gcg_formats import ELSEWHERE, GranDfDataset, OpenPSGGCGDataset
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.gcg import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

QUESTIONS = ['Caption it.', 'What is there?']
FILES = {
    'RefCOCOgGCGDataset': 'RefCOCOg_GCG',
    'GranDfDataset': 'GranDf_HA_GCG',
    'OpenPSGGCGDataset': 'OpenPsgGCG',
    'FlickrGCGDataset': 'flickr_mergedGT_GCG',
}
CAPTION = 'A dog chases a red cat.'
DOG, CAT = (0, 5), (13, 22)


@pytest.fixture
def write(tmp_path):
    (tmp_path / 'images').mkdir()

    def writer(kind, content, **options):
        (tmp_path / 'gcg.json').write_text(json.dumps(content))
        return dict(
            type=kind,
            ann_file='gcg.json',
            data_root=str(tmp_path),
            questions=QUESTIONS,
            data_prefix=dict(img_path='images'),
            **options,
        )

    return writer


def polygon(number):
    return [[float(number), 1.0, 5.0, 1.0, 5.0, 5.0]]


def refcocog(caption, *refs, image_id='7'):
    refs = [dict(sentence=sentence, segmentation=polygon(number)) for sentence, number in refs]
    return {image_id: dict(img_file_name='a.jpg', caption=caption, refs=refs)}


def grandf(caption=CAPTION, **groundings):
    """Groundings as word=(start, end, masks), or None."""
    return dict(
        file_name='folder/sa_12.jpg',
        caption=caption,
        groundings={
            word: value and dict(token_positives=list(value[:2]), rle_masks=value[2])
            for word, value in groundings.items()
        },
    )


def flickr(*annotations, **image):
    annotations = [
        {
            **dict(
                image_id=3, bbox=[1, 1, 5, 5], area=20, tokens_positive=[list(DOG)], sam_mask='mask'
            ),
            **annotation,
        }
        for annotation in annotations
    ]
    image = {**dict(id=3, file_name='b.jpg', height=40, width=50, caption=CAPTION), **image}
    return dict(images=[image], annotations=annotations)


def answer(dataset, index=0):
    return dataset[index]['conversation'][0]['gpt']


# Tagging.


def test_phrases_are_tagged_in_the_order_of_their_start():
    grounded = ground_caption(CAPTION, [(*CAT, ['cat']), (*DOG, ['dog'])])
    assert grounded.answer == '<p> A dog </p> [SEG] chases <p> a red cat </p> [SEG].'
    assert grounded.masks == ['dog', 'cat'] and grounded.phrases == ['A dog', 'a red cat']
    assert grounded.caption == CAPTION and not grounded.dropped


def test_the_same_span_twice_is_one_phrase_with_the_union():
    grounded = ground_caption(CAPTION, [(*CAT, ['a', 'b']), (*DOG, ['dog']), (*CAT, ['c'])])
    assert grounded.masks == ['dog', dict(union=['a', 'b', 'c'])]
    assert grounded.answer.count('[SEG]') == 2


@pytest.mark.parametrize('span', [(-1, 5), (5, 5), (6, 4), (20, 24), (5, 6), (23, 30)])
def test_spans_outside_of_the_caption_or_empty_are_dropped(span):
    grounded = ground_caption(CAPTION, [(*span, ['x']), (*DOG, ['dog'])])
    assert grounded.masks == ['dog'] and grounded.dropped == {OUTSIDE: 1}


def test_overlapping_spans_are_dropped_and_counted():
    spans = [(15, 22, ['x']), (15, 22, ['y']), (*CAT, ['cat']), (2, 5, ['z']), (*DOG, ['dog'])]
    grounded = ground_caption(CAPTION, spans)
    assert grounded.answer == '<p> A dog </p> [SEG] chases <p> a red cat </p> [SEG].'
    assert grounded.masks == ['dog', 'cat'] and grounded.dropped == {OVERLAPPING: 3}


def test_adjacent_spans_do_not_overlap():
    grounded = ground_caption('redcat', [(3, 6, ['b']), (0, 3, ['a'])])
    assert grounded.answer == '<p> red </p> [SEG]<p> cat </p> [SEG]'


def test_of_spans_with_one_start_the_longer_wins():
    spans = [(13, 18, ['a red']), (*CAT, ['a red cat'])]
    for order in (spans, spans[::-1]):
        assert ground_caption(CAPTION, order).phrases == ['a red cat']


def test_spans_without_a_mask_are_dropped():
    assert ground_caption(CAPTION, [(*DOG, [])]).dropped == {NO_MASK: 1}


@pytest.mark.parametrize(
    'before, after', [('"', '"'), (' "', '" '), ('', ''), ('" ', ''), ('\n', '"')]
)
def test_stripping_quotes_does_not_shift_the_spans(before, after):
    moved = [
        (start + len(before), end + len(before), [name])
        for start, end, name in ((*DOG, 'dog'), (*CAT, 'cat'))
    ]
    grounded = ground_caption(f'{before}{CAPTION}{after}', moved)
    assert grounded.phrases == ['A dog', 'a red cat'] and grounded.caption == CAPTION


def test_blanks_and_outer_quotes_do_not_belong_to_a_phrase():
    grounded = ground_caption('"a dog runs"', [(0, 7, ['dog'])])
    assert grounded.answer == '<p> a dog </p> [SEG] runs'
    same = ground_caption(CAPTION, [(0, 6, ['x']), (*DOG, ['y'])])
    assert same.masks == [dict(union=['x', 'y'])]


@given(
    st.text('ab "\n.', max_size=30),
    st.lists(st.tuples(st.integers(-3, 32), st.integers(-3, 32)), max_size=8),
    st.randoms(),
)
def test_tagging_never_changes_the_text(caption, positions, shuffler):
    spans = [(start, end, [i]) for i, (start, end) in enumerate(positions)]
    grounded = ground_caption(caption, spans)
    assert (
        re.sub(r'<p> (.*?) </p> \[SEG\]', r'\1', grounded.answer, flags=re.S)
        == grounded.caption
        == caption.strip(' "\n')
    )
    found = re.findall(r'<p> (.*?) </p> \[SEG\]', grounded.answer, flags=re.S)
    assert found == grounded.phrases and len(found) == len(grounded.masks)
    kept = [
        n for mask in grounded.masks for n in (mask['union'] if isinstance(mask, dict) else [mask])
    ]
    assert len(kept) + sum(grounded.dropped.values()) == len(spans) and len(set(kept)) == len(kept)
    for n in kept:
        assert caption[slice(*positions[n])].strip(' "\n') in grounded.caption
    shuffler.shuffle(spans)
    assert ground_caption(caption, spans).answer == grounded.answer


# RefCOCOg.


def test_refcocog_sentences_are_lower_cased_and_found(write):
    entry = refcocog('The Man feeds A dog', ('A Dog', 1), ('the man', 2))
    dataset = DATASETS.build(write('RefCOCOgGCGDataset', [entry]))
    assert answer(dataset) == '<p> the man </p> [SEG] feeds <p> a dog </p> [SEG]'
    assert dataset[0]['masks'] == [polygon(2), polygon(1)]
    assert dataset[0]['img_path'].endswith('images/a.jpg')


def test_refcocog_sentences_that_do_not_occur_are_left_out(write):
    entry = refcocog('a woman and a man', ('man', 1), ('cat', 2), ('', 3))
    dataset = DATASETS.build(write('RefCOCOgGCGDataset', [entry]))
    assert answer(dataset) == 'a woman and a <p> man </p> [SEG]'
    assert dataset.skipped == {OUTSIDE: 2}


def test_refcocog_duplicate_sentences_share_the_first_place(write):
    entry = refcocog('a man by a man', ('a man', 1), ('A man', 2))
    sample = DATASETS.build(write('RefCOCOgGCGDataset', [entry]))[0]
    assert sample['conversation'][0]['gpt'] == '<p> a man </p> [SEG] by a man'
    assert sample['masks'] == [dict(union=[polygon(1), polygon(2)])]


# GranDf and OpenPSG.


def test_grandf_groundings(write):
    entry = grandf(
        f'"{CAPTION}"',
        cat=(CAT[0] + 1, CAT[1] + 1, ['m', 'n']),
        sky=None,
        dog=(DOG[0] + 1, DOG[1] + 1, ['o']),
    )
    for kind in ('GranDfDataset', 'OpenPSGGCGDataset'):
        dataset = DATASETS.build(write(kind, [entry]))
        assert answer(dataset) == '<p> A dog </p> [SEG] chases <p> a red cat </p> [SEG].'
        assert dataset[0]['masks'] == ['o', dict(union=['m', 'n'])]
    assert issubclass(OpenPSGGCGDataset, GranDfDataset)


# Captions in quotes: token_positives count in the text with or without them.


@pytest.mark.parametrize(
    'quoted, shift',
    [
        (f'"{CAPTION}"', 0),
        (f'"{CAPTION}"', 1),
        (f'" {CAPTION}"', 0),
        (f'" {CAPTION}"', 1),
        (f'" {CAPTION}"', 2),
        (f' "{CAPTION}" ', 0),
        (f' "{CAPTION}" ', 2),
        (CAPTION, 0),
    ],
)
@pytest.mark.parametrize('kind', ['GranDfDataset', 'OpenPSGGCGDataset'])
def test_the_phrases_say_how_their_positions_count(write, kind, quoted, shift):
    entry = grandf(
        quoted,
        **{
            '"A Dog"': (DOG[0] + shift, DOG[1] + shift, ['o']),
            'a red cat': (CAT[0] + shift, CAT[1] + shift, ['m']),
            'sky': None,
        },
    )
    dataset = DATASETS.build(write(kind, [entry]))
    assert answer(dataset) == '<p> A dog </p> [SEG] chases <p> a red cat </p> [SEG].'
    assert not dataset.noted and not dataset.skipped


def test_phrases_elsewhere_than_their_positions_are_counted_and_said_once(write, said):
    """Most phrases of a caption decide; of the other ones the positions are taken."""
    entry = grandf(
        f'"{CAPTION}"',
        **{'A dog': (*DOG, ['o']), 'a red cat': (*CAT, ['m']), 'the chase': (6, 12, ['n'])},
    )
    dataset = DATASETS.build(write('GranDfDataset', [entry, entry]))
    assert answer(dataset) == (
        '<p> A dog </p> [SEG] <p> chases </p> [SEG] <p> a red cat </p> [SEG].'
    )
    assert dataset.noted == {ELSEWHERE: 2} and not dataset.skipped
    assert said == [f'GranDfDataset: 2 x {ELSEWHERE}']


def test_the_counts_of_what_was_read_otherwise_come_with_a_cached_index(write, tmp_path):
    cfg = write('GranDfDataset', [grandf(fish=(*DOG, ['m']))], index_cache=str(tmp_path / 'cache'))
    for _ in range(2):
        assert DATASETS.build(cfg).noted == {ELSEWHERE: 1}


# Flickr.


def test_flickr_joins_the_boxes_of_a_phrase(write):
    content = flickr(
        dict(sam_mask='a'),
        dict(tokens_positive=[list(CAT), list(DOG)], sam_mask='b'),
        dict(sam_mask='c'),
    )
    sample = DATASETS.build(write('FlickrGCGDataset', content))[0]
    assert sample['masks'] == [dict(union=['a', 'c']), 'b']
    assert (sample['height'], sample['width']) == (40, 50)


def test_flickr_sizes_may_be_text(write):
    """As in the real file, whose records come from MDETR's."""
    dataset = DATASETS.build(write('FlickrGCGDataset', flickr({}, height='40', width=' 50')))
    assert (dataset[0]['height'], dataset[0]['width']) == (40, 50) and not dataset.skipped
    with pytest.raises(AnnotationError, match='no item.*1 x .*height: must be the number'):
        DATASETS.build(write('FlickrGCGDataset', flickr({}, height='tall')))


@pytest.mark.parametrize(
    'fault',
    [
        dict(ignore=1),
        dict(area=0),
        dict(bbox=[60, 1, 5, 5]),
        dict(bbox=[-9, 1, 5, 5]),
        dict(bbox=[1, 1, 0.5, 5]),
        dict(bbox=[1, 1, 5, 0]),
        dict(sam_mask=None),
    ],
)
def test_flickr_leaves_annotations_out(write, fault):
    content = flickr(fault, dict(sam_mask='good', tokens_positive=[list(CAT)]))
    dataset = DATASETS.build(write('FlickrGCGDataset', content))
    assert dataset[0]['masks'] == ['good'] and sum(dataset.skipped.values()) == 1


@pytest.mark.parametrize(
    'image, kept',
    [
        (dict(caption='two words'), False),
        (dict(caption='three small words'), True),
        (dict(height=31), False),
        (dict(width=31), False),
        (dict(height=32, width=32), True),
    ],
)
def test_flickr_filters_images(write, image, kept):
    cfg = write('FlickrGCGDataset', flickr({}, **image))
    if kept:
        assert len(DATASETS.build(cfg)) == 1
    else:
        with pytest.raises(AnnotationError, match='no item'):
            DATASETS.build(cfg)


# What all share.


def test_questions_are_drawn_and_samples_reproducible(write):
    cfg = write('GranDfDataset', [grandf(dog=(*DOG, ['m']))])
    first, second = (DATASETS.build(dict(cfg, seed=5)) for _ in range(2))
    samples = [first[i] for i in range(12)]
    assert [s['conversation'] for s in samples] == [second[i]['conversation'] for i in range(12)]
    assert {sample['conversation'][0]['human'] for sample in samples} == set(QUESTIONS)
    assert all(len(sample['conversation']) == 1 and sample['prompts'] == [] for sample in samples)
    assert samples[0]['meta'] == dict(
        sample_id='GranDfDataset/0', dataset='GranDfDataset', task='gcg'
    )


def test_test_mode_asks_one_question_and_keeps_captions_without_phrases(write):
    entries = [grandf(f'"{CAPTION}"', dog=(1, 6, ['m'])), grandf('nothing here')]
    cfg = write('GranDfDataset', entries, test_mode=True)
    dataset = DATASETS.build(cfg)
    assert dataset[0]['conversation'][0]['human'] == TEST_QUESTION
    assert TEST_QUESTION.startswith('Could you please give me a detailed description of the image?')
    assert 'interleaved segmentation masks' in TEST_QUESTION
    assert dataset[0]['meta'] == dict(
        sample_id='GranDfDataset/0',
        dataset='GranDfDataset',
        task='gcg',
        image_id='sa_12',
        caption=CAPTION,
        phrases=['A dog'],
    )
    assert answer(dataset, 1) == 'nothing here' and dataset[1]['masks'] == []
    assert dataset[0]['conversation'] == dataset[2]['conversation']
    own = DATASETS.build(dict(cfg, test_question='five     blanks?'))
    assert own[0]['conversation'][0]['human'] == 'five     blanks?'


@pytest.mark.parametrize(
    'kind, content, image_id',
    [
        ('RefCOCOgGCGDataset', [refcocog('a dog', ('dog', 1), image_id='42')], '42'),
        ('FlickrGCGDataset', flickr({}), 3),
    ],
)
def test_image_ids_of_the_other_formats(write, kind, content, image_id):
    assert DATASETS.build(write(kind, content, test_mode=True))[0]['meta']['image_id'] == image_id


def test_captions_without_phrases_are_counted_in_training(write):
    dataset = DATASETS.build(write('GranDfDataset', [grandf(), grandf(dog=(*DOG, ['m']))]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    assert dataset[0]['meta']['sample_id'] == 'GranDfDataset/1'


BROKEN_GRANDF = [
    grandf('a [SEG] dog', dog=(0, 1, ['m'])),
    grandf('a <p> dog', dog=(0, 1, ['m'])),
    grandf('" "'),
    dict(grandf(), caption=3),
    dict(grandf(), groundings=[1]),
    grandf(dog=('0', 5, ['m'])),
    grandf(dog=(0, 2.5, ['m'])),
    grandf(dog=(0, 5, None)),
    dict(grandf(), groundings=dict(dog=4)),
    dict(grandf(dog=(*DOG, ['m'])), file_name=None),
    *(dict(grandf(dog=(*DOG, ['m'])), height=height) for height in ('tall', '4.5', '-3', '', 0)),
]
BROKEN_REFCOCOG = [
    {'1': dict(img_file_name='a.jpg', caption=None, refs=[])},
    {'1': dict(img_file_name='a.jpg', caption='a dog', refs={})},
    {'1': dict(img_file_name='a.jpg', caption='a dog', refs=[dict(sentence=1)])},
    {'1': dict(img_file_name='a.jpg', caption='a dog', refs=['dog'])},
]


@pytest.mark.parametrize(
    'kind, broken, good',
    [
        *(('GranDfDataset', entry, grandf(dog=(*DOG, ['m']))) for entry in BROKEN_GRANDF),
        *(
            ('RefCOCOgGCGDataset', entry, refcocog('a dog', ('dog', 1)))
            for entry in BROKEN_REFCOCOG
        ),
    ],
)
def test_broken_entries_are_counted_in_training_and_fatal_in_tests(write, kind, broken, good):
    dataset = DATASETS.build(write(kind, [broken, good]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 1
    with pytest.raises(BadSampleError, match=r'gcg.json: \[0\]'):
        DATASETS.build(write(kind, [broken, good], test_mode=True))


@pytest.mark.parametrize(
    'fault, key',
    [
        (dict(bbox=None), r'annotations\[0\].bbox'),
        (dict(bbox=[1, 2, '3', 4]), 'bbox'),
        (dict(area='big'), 'area'),
        (dict(tokens_positive=[]), 'tokens_positive'),
        (dict(tokens_positive=None), 'tokens_positive'),
        (dict(tokens_positive=[5]), 'tokens_positive'),
    ],
)
def test_broken_annotations_of_flickr_are_named(write, fault, key):
    with pytest.raises(BadSampleError, match=key):
        DATASETS.build(write('FlickrGCGDataset', flickr(fault), test_mode=True))


@pytest.mark.parametrize(
    'kind, content, key',
    [
        ('GranDfDataset', {}, 'JSON list'),
        ('GranDfDataset', [dict(caption='a')], r'\[0\].*file_name'),
        ('GranDfDataset', [], 'no item'),
        ('GranDfDataset', [7], r'\[0\]: must be a dict'),
        ('RefCOCOgGCGDataset', [dict(a=1, b=2)], 'only key'),
        ('RefCOCOgGCGDataset', [{'5': dict(caption='a')}], r'\[0\].5.*refs'),
        ('RefCOCOgGCGDataset', [], 'no item'),
        ('FlickrGCGDataset', [], 'JSON dict'),
        ('FlickrGCGDataset', dict(images=[]), 'annotations'),
        ('FlickrGCGDataset', dict(images=[], annotations={}), 'must be a list'),
        ('FlickrGCGDataset', dict(images=[], annotations=[]), 'no item'),
        ('FlickrGCGDataset', dict(images=[], annotations=[{}]), r'annotations\[0\].*image_id'),
        ('FlickrGCGDataset', dict(images=[dict(id=1)], annotations=[]), r'images\[0\].*caption'),
    ],
)
def test_damaged_files_are_named(write, kind, content, key):
    with pytest.raises(AnnotationError, match=rf'gcg.json: .*{key}'):
        DATASETS.build(write(kind, content))


def true_mask(image, phrase):
    """Pixels of what a phrase names: a group's sentence, or an object's own description."""
    masks = [
        decode_mask(item.segmentation, image.height, image.width, None, 'm')
        for item in image.objects
    ]
    members = {i for group in image.groups if group.sentence == phrase for i in group.members}
    members |= {
        i for i, item in enumerate(image.objects) if phrase.lower() == f'a {item.description}'
    }
    return np.logical_or.reduce([masks[i] for i in members])


@pytest.mark.parametrize('kind', FILES)
def test_reads_shapes_world(world, tmp_path, kind):
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    by_file = {str(world / 'images' / image.file_name): image for image in images}
    cfg = dict(
        type=kind,
        ann_file=str(tmp_path / f'annotations/{FILES[kind]}_train.json'),
        data_prefix=dict(img_path=str(world / 'images')),
        questions=QUESTIONS,
        pipeline=[dict(type='LoadImage'), dict(type='LoadMasks')],
    )
    train = DATASETS.build(cfg)
    assert len(train) == 24
    unions = 0
    for sample in train:
        image = by_file[sample['img_path']]
        phrases = re.findall(r'<p> (.*?) </p> \[SEG\]', sample['conversation'][0]['gpt'])
        assert len(phrases) == len(sample['gt_masks']) >= 2
        for phrase, mask in zip(phrases, sample['gt_masks']):
            assert (mask == true_mask(image, phrase)).all()
        unions += sum('union' in mask for mask in sample['masks'] if isinstance(mask, dict))
    assert unions > 5
    dropped = {
        'RefCOCOgGCGDataset': {OUTSIDE: 24},
        'FlickrGCGDataset': {OVERLAPPING: 24, 'annotation marked as ignore': 24},
    }.get(kind, {})
    assert train.skipped == dropped
    test = DATASETS.build(
        dict(cfg, ann_file=cfg['ann_file'].replace('train', 'test'), test_mode=True)
    )
    assert len(test) == 12
    assert all(len(s['meta']['phrases']) == len(s['gt_masks']) for s in test)
