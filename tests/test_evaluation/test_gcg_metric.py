"""GCGMetric against hand-worked cases, brute force and pycocotools."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.evaluation.metrics import GCGMetric
from pixelsail_mm.evaluation.metrics.gcg_metric import (
    find_phrases,
    mask_ap,
    mean_iou,
    mean_iou_paper,
    phrases_of_masks,
    plain_caption,
)
from pixelsail_mm.evaluation.metrics.text_similarity import TokenF1
from pixelsail_mm.registry import METRICS


@pytest.mark.parametrize(
    'text, strict, paper',
    [
        ('<p> A dog </p> [SEG] runs.<|endoftext|>', 'A dog runs.', 'A dog runs.'),
        ("'A dog'\nruns", "'A dog' runs", "A dog'runs"),
        ('x < y > z', 'x < y > z', 'x z'),
        ('[SEG]', '', ''),
        ('', '', ''),
    ],
)
def test_captions(text, strict, paper):
    assert plain_caption(text) == strict
    assert plain_caption(text, 'paper') == paper


@pytest.mark.parametrize(
    'text, phrases, owners',
    [
        (
            '<p> a dog </p> [SEG] and <p>  the  cat </p> [SEG].',
            ['a dog', 'the cat'],
            ['a dog', 'the cat'],
        ),
        ('<p> dogs </p> [SEG] [SEG]', ['dogs'], ['dogs', None]),
        ('<p> a </p> <p> b </p> [SEG]', ['a', 'b'], ['b']),
        ('[SEG] <p> a </p> [SEG] <p> b </p>', ['a', 'b'], [None, 'a']),
        ('<p> a [SEG] </p> [SEG]', ['a'], [None, 'a']),
        ('<p> two\nlines </p> is here [SEG]', ['two lines'], ['two lines']),
        ('<p> open [SEG]', [], [None]),
        ('', [], []),
    ],
)
def test_phrases(text, phrases, owners):
    assert find_phrases(text) == phrases
    assert phrases_of_masks(text, len(owners)) == owners


def test_phrases_when_there_are_fewer_or_more_masks_than_tokens():
    text = '<p> a </p> [SEG] <p> b </p> [SEG]'
    assert phrases_of_masks(text, 3) == ['a', 'b', None]
    assert phrases_of_masks(text, 1) == ['a']


def test_masks_of_a_paper_phrase_across_a_line_end():
    assert find_phrases('<p> two\nlines </p>', 'paper') == ['twolines']


def masks(*rows):
    """Masks of one row of pixels each, written as texts of 0 and 1; shape (n, 1, W)."""
    return np.array([[[int(pixel) for pixel in row]] for row in rows], bool)


NONE = np.zeros((0, 1, 6), bool)


def sample(sample_id, gt, pred, phrases=None, text=None, **meta):
    """True phrases are "thing 0", ...; the answer names them in order, unless told otherwise."""
    phrases = [f'thing {i}' for i in range(len(gt))] if phrases is None else phrases
    if text is None:
        text = 'There is ' + ', '.join(f'<p> thing {i} </p> [SEG]' for i in range(len(pred))) + '.'
    return dict(
        dict(
            sample_id=sample_id,
            dataset='d',
            task='gcg',
            image_id=sample_id,
            caption='There is thing 0.',
            phrases=phrases,
            gt_masks=gt,
            pred_masks=pred,
            pred_text=text,
        ),
        **meta,
    )


def evaluate(samples, **kwargs):
    metric = GCGMetric(**{'caption_metrics': (), **kwargs})
    metric.process(None, samples)
    return {
        name.removeprefix('gcg/'): value
        for name, value in metric.evaluate(size=len(samples)).items()
    }


TWO = masks('111000', '000111')


def test_a_perfect_answer():
    assert evaluate([sample('a', TWO, TWO)]) == dict(
        AP50=pytest.approx(1),
        AP=pytest.approx(1),
        mIoU=1.0,
        recall_token_f1=1.0,
        mismatched=0,
        phrases_without_mask=0,
        masks_without_phrase=0,
    )


def test_hand_worked_values():
    samples = [
        # IoU 2/3 and 1: AP counts the first at 0.5, 0.55, 0.6 and 0.65.
        sample('a', TWO, masks('110000', '000111')),
        # One of two is found, and a third mask is wrong: sum of IoU 1, of three masks.
        sample('b', TWO, masks('111000', '100000', '100000')),
        # No answer at all.
        sample('c', masks('111111'), NONE, text='Nothing.'),
    ]
    metrics = evaluate(samples)
    assert metrics['mIoU'] == pytest.approx(((2 / 3 + 1) / 2 + 1 / 3 + 0) / 3)
    assert metrics['recall_token_f1'] == pytest.approx(3 / 5)
    paper = evaluate(samples, protocol='paper')
    assert paper['mIoU'] == pytest.approx(((2 / 3 + 1) / 2 + 1 + 0) / 3)
    assert paper['recall_token_f1'] == pytest.approx(3 / 5)
    assert paper['AP'] == metrics['AP'] and paper['protocol'] == 'paper'
    assert list(metrics)[0] == list(paper)[0] == 'AP50'


def test_hand_worked_average_precision():
    # Alone, right at the thresholds 0.5, 0.55, 0.6 and 0.65.
    assert evaluate([sample('a', masks('111000'), masks('110000'))])['AP'] == pytest.approx(0.4)
    # All scores are 1: a wrong mask in front halves the precision, one behind does nothing.
    right, wrong = '111000', '000001'
    assert evaluate([sample('a', masks(right), masks(wrong, right))])['AP50'] == pytest.approx(0.5)
    assert evaluate([sample('a', masks(right), masks(right, wrong))])['AP50'] == pytest.approx(1)
    assert evaluate([sample('a', masks(right), NONE)])['AP50'] == 0


def test_average_precision_follows_the_image_ids_not_the_order_of_arrival():
    early = sample('z', masks('111000'), masks('111000'), image_id=2)
    late = sample('a', masks('111000'), masks('000111'), image_id=10)
    expected = evaluate([early, late])
    assert expected['AP50'] == pytest.approx(51 / 101)
    assert evaluate([late, early]) == expected
    # As texts, '10' is in front of '2'.
    texts = evaluate([dict(early, image_id='2'), dict(late, image_id='10')])
    assert texts['AP50'] == pytest.approx(0.5 * 51 / 101)


def test_nothing_true():
    assert evaluate([sample('a', NONE, NONE, text='Nothing.')]) == dict(
        mIoU=1.0, mismatched=0, phrases_without_mask=0, masks_without_phrase=0
    )
    assert evaluate([sample('a', NONE, TWO)])['mIoU'] == 0
    assert evaluate([sample('a', NONE, NONE)], protocol='paper')['mIoU'] == 0


def test_recall_needs_mask_and_phrase_of_the_same_answer():
    swapped = 'See <p> thing 1 </p> [SEG] and <p> thing 0 </p> [SEG].'
    similarity = dict(similarity_threshold=0.9)
    assert evaluate([sample('a', TWO, TWO, text=swapped)], **similarity)['recall_token_f1'] == 0
    # "thing 0" and "thing 1" share one of two words: just similar enough by default.
    assert evaluate([sample('a', TWO, TWO, text=swapped)])['recall_token_f1'] == 1
    assert evaluate([sample('a', TWO, ~TWO)])['recall_token_f1'] == 1
    assert evaluate([sample('a', TWO, ~TWO)], **similarity)['recall_token_f1'] == 0


def test_paper_recall_stops_at_the_first_failing_pair():
    gt, pred = masks('111000', '000111'), masks('111000', '000110')
    text = '<p> nonsense </p> [SEG] <p> thing 1 </p> [SEG]'
    assert evaluate([sample('a', gt, pred, text=text)])['recall_token_f1'] == 1 / 2
    assert evaluate([sample('a', gt, pred, text=text)], protocol='paper')['recall_token_f1'] == 0
    # The other way round, the better pair is found before the failing one.
    text = '<p> thing 0 </p> [SEG] <p> nonsense </p> [SEG]'
    for protocol in ('strict', 'paper'):
        assert (
            evaluate([sample('a', gt, pred, text=text)], protocol=protocol)['recall_token_f1']
            == 1 / 2
        )


def test_paper_recall_loses_images_where_a_mask_has_no_phrase():
    text = '<p> thing 0 </p> [SEG] and [SEG]'
    samples = [sample('a', TWO, TWO, text=text), sample('b', TWO, TWO)]
    strict, paper = evaluate(samples), evaluate(samples, protocol='paper')
    assert strict['recall_token_f1'] == pytest.approx(3 / 4)
    assert paper['recall_token_f1'] == pytest.approx(2 / 4)
    assert strict['mismatched'] == paper['mismatched'] == 1
    assert (strict['phrases_without_mask'], strict['masks_without_phrase']) == (0, 1)


def test_strict_recall_gives_each_true_phrase_a_partner_of_its_own():
    # Both predictions fit the first target, only the first of them the second one as well.
    gt, pred = masks('111100', '111000'), masks('111000', '111110')
    phrases = ['a red dog', 'a red cat']
    text = '<p> a red thing </p> [SEG] <p> a red dog </p> [SEG]'
    found = evaluate([sample('a', gt, pred, phrases=phrases, text=text)])
    assert found['recall_token_f1'] == 1
    once = evaluate([sample('a', gt, pred[:1], phrases=phrases, text='<p> a red </p> [SEG]')])
    assert once['recall_token_f1'] == 1 / 2


def test_mismatches_are_counted():
    samples = [
        sample('a', TWO, TWO, text='<p> x </p> [SEG] <p> y </p> <p> z </p> [SEG]'),
        sample('b', TWO, NONE, text='<p> x </p>'),
        sample('c', TWO, TWO),
    ]
    metrics = evaluate(samples)
    assert metrics['mismatched'] == 2
    assert metrics['phrases_without_mask'] == 2
    assert metrics['masks_without_phrase'] == 0


@pytest.mark.parametrize('height, width', [(1, 7), (13, 1), (5, 3), (64, 64)])
def test_awkward_masks(height, width):
    blank, full = np.zeros((1, height, width), bool), np.ones((1, height, width), bool)
    gt = np.concatenate([blank, full])
    for pred in (gt, gt[::-1]):
        metrics = evaluate(
            [sample('a', gt, pred, phrases=['x', 'x'], text='<p> x </p> [SEG] <p> x </p> [SEG]')]
        )
        assert metrics['mIoU'] == metrics['recall_token_f1'] == 1 / 2
        # The true mask without a pixel is never found.
        assert metrics['AP50'] <= 0.51
    none = np.zeros((0, height, width), bool)
    assert evaluate([sample('a', gt, none)])['mIoU'] == 0
    assert evaluate([sample('a', gt.astype(np.uint8) * 2, gt)])['mIoU'] == 1 / 2


def slow_mean_iou(ious):
    """Every way to pair."""
    ious = ious if len(ious) <= ious.shape[1] else ious.T
    rows, columns = ious.shape
    return (
        max(
            sum(ious[i, j] for i, j in enumerate(chosen))
            for chosen in itertools.permutations(range(columns), rows)
        )
        / columns
    )


def slow_mean_iou_paper(ious):
    """Greedy, with sets of what is left."""
    pairs, taken = sorted(((-ious[i, j], j, i) for i, j in np.ndindex(*ious.shape))), []
    rows, columns = set(range(len(ious))), set(range(ious.shape[1]))
    for value, j, i in pairs:
        if value < 0 and i in rows and j in columns:
            taken.append(-value)
            rows.remove(i)
            columns.remove(j)
    return sum(taken) / len(taken) if taken else 0


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_pairing_equals_brute_force(seed, rows, columns):
    rng = np.random.default_rng(seed)
    ious = rng.integers(0, 5, (rows, columns)) / 4
    assert mean_iou(ious) == pytest.approx(slow_mean_iou(ious))
    assert mean_iou_paper(ious) == pytest.approx(slow_mean_iou_paper(ious))
    assert ious.max() <= 1 and mean_iou(ious) <= 1


def encode(found):
    codes = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in found]
    return [dict(size=code['size'], counts=code['counts'].decode()) for code in codes]


def coco_stats(images, capsys):
    """AP and AP50 as users of COCO's tools get them, from a result list."""
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=i, height=8, width=9) for i in range(len(images))],
        categories=[dict(id=1)],
        annotations=[
            dict(
                id=100 * i + j + 1,
                image_id=i,
                category_id=1,
                segmentation=mask,
                iscrowd=0,
                area=float(coco_mask.area(mask)),
            )
            for i, (true, _) in enumerate(images)
            for j, mask in enumerate(true)
        ],
    )
    truth.createIndex()
    found = truth.loadRes(
        [
            dict(image_id=i, category_id=1, segmentation=dict(mask), score=1.0)
            for i, (_, predicted) in enumerate(images)
            for mask in predicted
        ]
    )
    evaluation = COCOeval(truth, found, 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    return evaluation.stats[:2]


@pytest.mark.parametrize('seed', range(4))
def test_average_precision_equals_summary_of_pycocotools(seed, capsys):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(12):
        true = rng.random((rng.integers(0, 5), 8, 9)) < 0.4
        noise = rng.random((5, 8, 9)) < rng.choice([0.02, 0.1, 0.3])
        predicted = (true ^ noise[: len(true)])[: rng.integers(0, 6)]
        images.append((encode(true), encode(np.concatenate([predicted, noise[: rng.integers(2)]]))))
    values = mask_ap(images)
    assert capsys.readouterr().out == ''
    assert [values['AP'], values['AP50']] == pytest.approx(list(coco_stats(images, capsys)))
    assert 0 < values['AP'] < values['AP50'] < 1


def test_records_are_plain_and_repeats_count_once():
    metric = GCGMetric(caption_metrics=())
    samples = [sample('a', TWO, TWO), sample('b', TWO, NONE)]
    metric.process(None, [*samples, samples[0]])
    assert json.loads(json.dumps(metric.results)) == json.loads(json.dumps(metric.results[:3]))
    assert metric.evaluate(3)['gcg/mIoU'] == 1 / 2


def test_groups():
    samples = [sample('a', TWO, TWO, kind='x'), sample('b', TWO, NONE, kind='y')]
    metrics = evaluate(samples, group_by='kind')
    assert (metrics['x/mIoU'], metrics['y/mIoU'], metrics['mIoU']) == (1, 0, 1 / 2)


def test_captions_are_scored_by_the_caption_toolkit(fake_java):
    # "There is thing 0." against "There is thing 0, thing 1.": four of five words, as a set.
    metrics = evaluate([sample('a', TWO, TWO)], caption_metrics=('METEOR',))
    assert metrics['METEOR'] == pytest.approx(4 / 5)
    assert fake_java()[-1] == 'meteor ends'


def test_missing_java(no_java):
    with pytest.raises(ConfigError, match='GCGMetric: METEOR, CIDEr cannot be computed'):
        GCGMetric()
    assert 'gcg/METEOR' not in GCGMetric(on_missing='skip').settings


@pytest.mark.parametrize(
    'fault, error, message',
    [
        (dict(pred_masks=np.zeros((1, 2, 2), bool)), ValueError, r"'a'.*\(2, 2\).*\(1, 6\)"),
        (dict(phrases=['x']), ValueError, "'a' has 1 true phrases but 2 true masks"),
        (dict(pred_text=None), ValueError, "'a' has no 'pred_text'"),
        *(
            (({key: None}), KeyError, f"'a' has no '{key}'")
            for key in ('gt_masks', 'pred_masks', 'phrases', 'caption', 'image_id')
        ),
    ],
)
def test_faulty_samples_are_named(fault, error, message):
    with pytest.raises(error, match=message):
        evaluate([{**sample('a', TWO, TWO), **fault}])


@pytest.mark.parametrize(
    'faulty, message',
    [
        (dict(protocol='loose'), 'protocol'),
        (dict(iou_threshold=0), 'iou_threshold'),
        (
            dict(similarity=dict(type='bert_cosine', path='/nowhere')),
            "no folder '/nowhere'.*token_f1",
        ),
    ],
)
def test_faulty_settings(faulty, message):
    with pytest.raises(ConfigError, match=message):
        GCGMetric(caption_metrics=(), **faulty)


@pytest.mark.parametrize(
    'one, other, value',
    [
        ('a red dog', 'the red dog', 4 / 6),
        ('dog', 'Dog!', 1),
        ('dog dog', 'dog', 2 / 3),
        ('cat', 'dog', 0),
        ('', '', 1),
        ('', 'dog', 0),
    ],
)
def test_token_f1(one, other, value):
    assert TokenF1()(one, other) == TokenF1()(other, one) == pytest.approx(value)


def test_similarity_of_ones_own():
    def same_first_letter(one, other):
        return float(one[0] == other[0])

    metric = METRICS.build(dict(type='GCGMetric', caption_metrics=(), similarity=same_first_letter))
    metric.process(None, [sample('a', TWO, TWO, phrases=['tree', 'cat'])])
    assert metric.evaluate(1)['gcg/recall_function'] == 1 / 2
    assert metric.settings['similarity'] == 'function'


@pytest.fixture
def tiny_bert(tmp_path):
    """A BERT of two layers with random weights and a vocabulary of eight words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'dog', 'cat']
    (tmp_path / 'vocab.txt').write_text('\n'.join(words))
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    model.save_pretrained(tmp_path / 'bert')
    BertTokenizerFast(str(tmp_path / 'vocab.txt')).save_pretrained(tmp_path / 'bert')
    return tmp_path / 'bert', model.eval()


def test_bert_similarity_is_the_cosine_of_mean_states(tiny_bert):
    import torch

    folder, model = tiny_bert
    metric = GCGMetric(
        caption_metrics=(),
        similarity_threshold=0.999,
        similarity=dict(type='bert_cosine', path=str(folder)),
    )
    with torch.no_grad():
        # [CLS] red dog [SEP] and [CLS] cat [SEP]
        states = [
            model(torch.tensor([ids])).last_hidden_state[0].mean(0)
            for ids in ([2, 5, 6, 3], [2, 7, 3])
        ]
    expected = float(torch.cosine_similarity(*states, dim=0))
    assert metric.similarity('red dog', 'cat') == pytest.approx(expected, abs=1e-5)
    assert metric.similarity('Red  dog', 'red dog') == pytest.approx(1)
    metric.process(
        None,
        [
            sample(
                'a',
                TWO,
                TWO,
                phrases=['red dog', 'cat'],
                text='<p> red dog </p> [SEG] <p> red dog </p> [SEG]',
            )
        ],
    )
    assert expected < 0.999 and metric.evaluate(1)['gcg/recall_bert_cosine'] == 1 / 2


def test_what_the_reader_gives_is_what_the_metric_reads(tmp_path):
    from PIL import Image

    from pixelsail_mm.datasets.readers.gcg_formats import GranDfDataset
    from pixelsail_mm.datasets.transforms.loading import LoadImage, LoadMasks

    Image.new('RGB', (6, 1)).save(tmp_path / 'a.png')
    dog, cat = encode(TWO)
    (tmp_path / 'gcg.json').write_text(
        json.dumps(
            [
                dict(
                    file_name='a.png',
                    caption='A dog and a cat.',
                    groundings={
                        'dog': dict(token_positives=[0, 5], rle_masks=[dog]),
                        'cat': dict(token_positives=[10, 15], rle_masks=[cat]),
                    },
                )
            ]
        )
    )
    dataset = GranDfDataset(
        ann_file=str(tmp_path / 'gcg.json'),
        test_mode=True,
        data_prefix=dict(img_path=str(tmp_path)),
        questions=['Describe it.'],
    )
    record = dataset.record(0, np.random.default_rng(0))
    results = LoadMasks()(LoadImage()(record))
    answer = record['conversation'][0]['gpt']
    metrics = evaluate(
        [
            dict(
                record['meta'],
                gt_masks=results['gt_masks'],
                pred_text=answer,
                pred_masks=results['gt_masks'],
            )
        ]
    )
    assert metrics['mIoU'] == metrics['recall_token_f1'] == 1 and metrics['mismatched'] == 0
    # A blank is left where a tag was; tokens are the same.
    assert plain_caption(answer) == record['meta']['caption'].replace('.', ' .')
