"""PerBenchMetric: the overall score, both protocols, the retry, and what may be missing."""

import json
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.evaluation.metrics import PerBenchMetric, perbench_metric
from pixelsail_mm.evaluation.metrics.perbench_metric import (
    clean_perbench_paper,
    first_pair,
    iou_of_first_pairs,
    load_meteor_nltk,
    perbench_overall,
)
from pixelsail_mm.registry import METRICS


@pytest.mark.parametrize(
    'meteor, accuracy, ciou, giou, overall',
    [
        (21.4, 0.69, 29.7, 19.8, 38.4),
        (24.2, 0.74, 33.4, 23.5, 42.2),
        (19.2, 0.71, 31.9, 21.9, 39.0),
    ],
)
def test_overall_gives_the_published_rows(meteor, accuracy, ciou, giou, overall):
    found = perbench_overall(meteor / 100, accuracy, ciou / 100, giou / 100)
    assert found == pytest.approx(overall, abs=0.051)


@pytest.mark.parametrize(
    'text, cleaned',
    [('<Prompt0>: A dog.<|endoftext|>', ': A dog.'), ('A <Prompt1>', 'A <Prompt1>'), ('', '')],
)
def test_cleaning(text, cleaned):
    assert clean_perbench_paper(text) == cleaned


def masks(*rows):
    """Masks of one row of pixels each, written as texts of 0 and 1; shape (n, 1, W)."""
    return np.array([[[int(pixel) for pixel in row]] for row in rows], bool).reshape(-1, 1, 6)


def caption(sample_id, text, *references):
    return dict(
        sample_id=sample_id, dataset='c', task='region', pred_text=text, references=list(references)
    )


def choice(sample_id, text, answer, **meta):
    return dict(
        sample_id=sample_id,
        dataset='m',
        task='mcq',
        pred_text=text,
        answer=answer,
        choices=['red', 'blue'],
        **meta,
    )


def segmentation(sample_id, gt, pred, **meta):
    return dict(
        sample_id=sample_id, dataset='v', task='refseg', gt_masks=gt, pred_masks=pred, **meta
    )


# METEOR of the stand-in: words in common by words said, 2 of 2 and 1 of 2.
CAPTIONS = [caption('a', '<Prompt0>: Red dog.', 'red dog'), caption('b', 'red sky', 'blue sky')]
# Right, wrong, and one that only the release takes for right.
CHOICES = [
    choice('a', 'A', 'A'),
    choice('b', 'B', 'A'),
    choice('c', 'It is A or B', 'A'),
    choice('d', '(B) blue', 'B'),
]
SEGMENTATIONS = [
    # I 2, U 3; I 1, U 2. The release sees the first pair only.
    segmentation('a', masks('111000', '000110'), masks('110000', '000100')),
    # A second answer: I 1, U 2.
    segmentation('b', masks('110000'), masks('100000'), retried=True),
    # No answer: U 6, left out by the release.
    segmentation('c', masks('111111'), masks(), retried=True),
]
ALL = [*CAPTIONS, *CHOICES, *SEGMENTATIONS]


@pytest.fixture
def fake_nltk(monkeypatch):
    """NLTK without METEOR and WordNet: a score that shows the order and form of its arguments."""

    def meteor_score(references, hypothesis, wordnet):
        assert wordnet is corpus.wordnet
        return (len(references[0]) + len(hypothesis) / 10) / 10

    corpus = types.ModuleType('nltk.corpus')
    corpus.wordnet = types.SimpleNamespace(synsets=lambda word: [word])
    score = types.ModuleType('nltk.translate.meteor_score')
    score.meteor_score = meteor_score
    nltk = types.ModuleType('nltk')
    nltk.__spec__ = types.SimpleNamespace(name='nltk')
    for name, module in {
        'nltk': nltk,
        'nltk.corpus': corpus,
        'nltk.translate': types.ModuleType('nltk.translate'),
        'nltk.translate.meteor_score': score,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return corpus


@pytest.fixture
def no_nltk(monkeypatch):
    """A machine without NLTK."""
    monkeypatch.setitem(sys.modules, 'nltk', None)


def evaluate(samples, **kwargs):
    metric = PerBenchMetric(**kwargs)
    metric.process(None, samples)
    return {
        name.removeprefix('perbench/'): value
        for name, value in metric.evaluate(size=len(samples)).items()
    }


def test_strict_values(fake_java, no_nltk):
    metrics = evaluate(ALL, protocols='strict')
    ciou, giou = (2 + 1 + 1) / (3 + 2 + 2 + 6), (2 / 3 + 1 / 2 + 1 / 2 + 0) / 4
    ciou_once, giou_once = (2 + 1) / (3 + 2 + 2 + 6), (2 / 3 + 1 / 2) / 4
    expected = {
        'overall': 100 * (3 / 4 + 2 / 4 + (ciou + giou) / 2) / 3,
        'overall_no_retry': 100 * (3 / 4 + 2 / 4 + (ciou_once + giou_once) / 2) / 3,
        'METEOR': 3 / 4,
        'accuracy': 2 / 4,
        'chance': 1 / 2,
        'unparsed': 1 / 4,
        'cIoU': ciou,
        'gIoU': giou,
        'missing': 1 / 4,
        'retried': 2 / 3,
        'cIoU_no_retry': ciou_once,
        'gIoU_no_retry': giou_once,
    }
    assert metrics == {name: pytest.approx(value) for name, value in expected.items()}
    assert next(iter(metrics)) == 'overall'
    assert fake_java()[-1] == 'meteor ends'


def test_paper_values(no_java, fake_nltk):
    metrics = evaluate(ALL, protocols='paper')
    # Prediction ": Red dog." of three words as reference, two words of the reference as
    # prediction; then two and two.
    meteor = (0.32 + 0.22) / 2
    ciou, giou = (2 + 1) / (3 + 2), (2 / 3 + 1 / 2) / 4
    ciou_once, giou_once = 2 / 3, (2 / 3) / 4
    expected = {
        'overall': 100 * (meteor + 3 / 4 + (ciou + giou) / 2) / 3,
        'overall_no_retry': 100 * (meteor + 3 / 4 + (ciou_once + giou_once) / 2) / 3,
        'meteor_nltk': meteor,
        'accuracy': 3 / 4,
        'cIoU': ciou,
        'gIoU': giou,
        'cIoU_no_retry': ciou_once,
        'gIoU_no_retry': giou_once,
    }
    assert metrics == {
        f'paper/{name}': pytest.approx(value, abs=1e-4) for name, value in expected.items()
    }


def test_both_protocols_side_by_side(fake_java, fake_nltk):
    both = evaluate(ALL)
    assert both == {**evaluate(ALL, protocols='strict'), **evaluate(ALL, protocols=['paper'])}
    assert next(iter(both)) == 'overall' and 'paper/overall' in both


@pytest.mark.parametrize('broken', ['package', 'data'])
def test_without_nltk_the_paper_value_is_missing_and_said_so(
    fake_java, request, warnings_of, broken
):
    if broken == 'package':
        request.getfixturevalue('no_nltk')
    else:

        def fail(word):
            raise LookupError('wordnet')

        request.getfixturevalue('fake_nltk').wordnet.synsets = fail
    said = warnings_of(perbench_metric)
    metrics = evaluate(ALL)
    assert len(said) == 1 and 'paper/meteor_nltk and paper/overall are left out' in said[0]
    assert ('pip install nltk' if broken == 'package' else 'nltk.downloader wordnet') in said[0]
    assert not {'paper/meteor_nltk', 'paper/overall', 'paper/overall_no_retry'} & set(metrics)
    assert metrics['paper/accuracy'] == 3 / 4 and 'overall' in metrics


def test_without_java(no_java, no_nltk):
    with pytest.raises(ConfigError, match='PerBenchMetric: METEOR cannot be computed without'):
        PerBenchMetric()
    metrics = evaluate(ALL, on_missing='skip')
    assert 'METEOR' not in metrics and 'overall' not in metrics
    assert metrics['accuracy'] == 2 / 4 and metrics['cIoU'] == pytest.approx(4 / 13)


@pytest.mark.parametrize(
    'lacking, kept',
    [
        (['region'], CHOICES + SEGMENTATIONS),
        (['mcq'], CAPTIONS + SEGMENTATIONS),
        (['mcq', 'refseg'], CAPTIONS),
    ],
)
def test_parts_of_the_test_set_may_be_missing(fake_java, fake_nltk, warnings_of, lacking, kept):
    said = warnings_of(perbench_metric)
    metrics = evaluate(kept)
    assert said == [
        f'PerBenchMetric: the test set has no sample of task {lacking}, so there is no '
        'overall score'
    ]
    assert not any('overall' in name for name in metrics)
    assert ('cIoU' in metrics) == ('paper/cIoU' in metrics) == ('refseg' not in lacking)
    assert ('accuracy' in metrics) == ('paper/accuracy' in metrics) == ('mcq' not in lacking)
    assert ('METEOR' in metrics) == ('paper/meteor_nltk' in metrics) == ('region' not in lacking)


def test_other_tasks_groups_and_repeats(fake_java, no_nltk):
    samples = [
        *CAPTIONS,
        *CHOICES[:3],
        choice('d', 'B', 'B', question_type='colour'),
        *SEGMENTATIONS,
        SEGMENTATIONS[0],
        dict(sample_id='x', task='gcg', pred_text=''),
    ]
    metrics = evaluate(samples, group_by='question_type')
    assert metrics['cIoU'] == pytest.approx(4 / 13)
    assert metrics['colour/accuracy'] == 1 and 'colour/cIoU' not in metrics


def test_an_empty_test_set_is_an_error(fake_java, no_nltk):
    with pytest.raises(ValueError, match='no sample of task'):
        evaluate([dict(sample_id='x', task='gcg')])


def test_records_are_plain(fake_java, no_nltk):
    metric = PerBenchMetric()
    metric.process(None, ALL)
    assert json.loads(json.dumps(metric.results))[-1]['retried'] is True
    json.dumps(metric.settings)


def test_the_retry_may_be_noted_by_reader_or_model(fake_java, no_nltk):
    from mmengine.evaluator import Evaluator
    from mmengine.structures import BaseDataElement

    elements = []
    for sample in ALL:
        # Of the two samples asked twice, the model notes one, the reader the other.
        fields = {'gt_masks', 'pred_masks', *(['retried'] if sample['sample_id'] == 'b' else [])}
        elements.append(
            BaseDataElement(
                metainfo={key: value for key, value in sample.items() if key not in fields},
                **{key: value for key, value in sample.items() if key in fields},
            )
        )
    evaluator = Evaluator(METRICS.build(dict(type='PerBenchMetric', protocols=['strict'])))
    evaluator.process(elements, None)
    assert evaluator.evaluate(len(ALL))['perbench/retried'] == pytest.approx(2 / 3)


def slow_first_pairs(samples):
    """Pixel by pixel, from the description of the release."""
    inter = union = total = targets = 0
    for gt, pred in samples:
        targets += len(gt)
        if not len(pred) or not len(gt):
            continue
        i = sum(a and b for a, b in zip(pred[0].ravel(), gt[0].ravel()))
        u = sum(a or b for a, b in zip(pred[0].ravel(), gt[0].ravel()))
        inter, union = inter + i, union + u
        total += i / (u + 1e-5) if u else 1
    return inter / (union + 1e-10), total / targets


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_iou_of_first_pairs_equals_slow_reference(seed, height, width):
    rng = np.random.default_rng(seed)
    samples = [
        (
            rng.random((rng.integers(1, 4), height, width)) < rng.choice([0, 0.4, 1]),
            rng.random((rng.integers(0, 4), height, width)) < rng.choice([0, 0.4, 1]),
        )
        for _ in range(4)
    ]
    records = [first_pair(dict(gt_masks=gt, pred_masks=pred)) for gt, pred in samples]
    assert iou_of_first_pairs(records) == pytest.approx(slow_first_pairs(samples))


def test_faulty_settings_and_samples(fake_java, no_nltk):
    for protocols in ('loose', [], ['strict', 'loose']):
        with pytest.raises(ConfigError, match='protocols must be some of'):
            PerBenchMetric(protocols=protocols)
    for sample, message in [
        (caption('a', None, 'x'), "'a' has no 'pred_text'"),
        (caption('a', 'x'), "'a': metainfo 'references'"),
        (choice('a', 'A', 'C'), "'C' is neither a letter"),
        (segmentation('a', masks('100000'), np.zeros((1, 2, 2), bool)), 'size'),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate([sample])


@pytest.mark.slow
def test_hand_worked_meteor_of_nltk():
    """F = P R / (0.9 P + 0.1 R), times 1 - 0.5 (chunks / matches)^3; order as in the release."""
    meteor = load_meteor_nltk()
    if isinstance(meteor, str):
        pytest.skip(f'needs {meteor}')
    assert meteor('a b c', 'a b d') == pytest.approx(2 / 3 * (1 - 0.5 / 8))
    # Four matches in two chunks; seven words said, the reference's five come as the prediction.
    p, r = 4 / 5, 4 / 7
    assert meteor(': A red dog runs quickly .', 'A red dog is running') == pytest.approx(
        p * r / (0.9 * p + 0.1 * r) * (1 - 0.5 / 8)
    )
    assert meteor('', 'a dog') == 0


def test_what_the_readers_give_is_what_the_metric_reads(tmp_path, fake_java, fake_nltk):
    from PIL import Image
    from pycocotools import mask as coco_mask

    from pixelsail_mm.datasets.readers.perbench import (
        PerBenchCaptionDataset,
        PerBenchMCQDataset,
        PerBenchVRESDataset,
    )
    from pixelsail_mm.datasets.transforms.loading import LoadImage, LoadMasks

    Image.new('RGB', (6, 1)).save(tmp_path / 'a.png')
    left, middle, right = (
        dict(
            size=[1, 6],
            counts=coco_mask.encode(np.asfortranarray(mask, np.uint8))['counts'].decode(),
        )
        for mask in masks('110000', '001100', '000011')
    )
    files = {
        PerBenchCaptionDataset: dict(
            object_annotations=[dict(segmentation=left, caption='A red dog.')]
        ),
        PerBenchMCQDataset: dict(
            mcqs=[dict(object=left, question='Which colour?\nA. red\nB. blue\n', answer='A')]
        ),
        # Another order in the file than in the answer.
        PerBenchVRESDataset: dict(
            question='Segment what is beside obj1.',
            answer='They are obj3 and obj2.',
            segmentations=dict(obj1=left, obj2=middle, obj3=right),
        ),
    }
    samples = []
    for kind, entry in files.items():
        (tmp_path / 'file.json').write_text(json.dumps([dict(image_name='a.png', **entry)]))
        dataset = kind(
            ann_file=str(tmp_path / 'file.json'), data_prefix=dict(img_path=str(tmp_path))
        )
        record = dataset.record(0, np.random.default_rng(0))
        found = LoadMasks()(LoadImage()(record))['gt_masks']
        samples.append(
            dict(
                record['meta'],
                gt_masks=found,
                pred_masks=found,
                pred_text=record['conversation'][-1]['gpt'],
            )
        )
    values = evaluate(samples)
    assert values['overall'] == values['overall_no_retry'] == 100
    # The first mask is obj3's, as in the answer; the release compares it with obj2's.
    assert values['paper/cIoU'] == values['paper/gIoU'] == 0
    samples[2]['pred_masks'] = samples[2]['pred_masks'][::-1]
    values = evaluate(samples)
    assert values['cIoU'] == values['gIoU'] == 0
    assert values['paper/cIoU'] == pytest.approx(1, abs=1e-5)
    assert values['paper/gIoU'] == pytest.approx(1 / 2, abs=1e-5)
    assert values['paper/overall'] == pytest.approx(
        100 * (0.33 + 1 + (1 + 1 / 2) / 2) / 3, abs=1e-3
    )
