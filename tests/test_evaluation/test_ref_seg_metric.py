"""RefSegMetric against hand-worked cases, a slow independent implementation and MMDetection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from pycocotools import mask as coco_mask

from pixelsail_mm.evaluation import RefSegMetric
from pixelsail_mm.registry import METRICS


def sample(sample_id, gt, pred, **meta):
    return dict(
        sample_id=sample_id,
        dataset='d',
        task='refseg',
        gt_masks=torch.as_tensor(gt),
        pred_masks=torch.as_tensor(pred),
        **meta,
    )


def evaluate(samples, **kwargs):
    metric = RefSegMetric(**kwargs)
    metric.process(None, samples)
    return metric.evaluate(size=len(samples))


def row(*pixels):
    """One mask of one row of pixels, shape (1, 1, W)."""
    return np.array([[pixels]], dtype=bool)


NONE = np.zeros((0, 1, 4), dtype=bool)


def test_hand_worked_sums():
    metrics = evaluate(
        [
            sample('a', row(1, 1, 0, 0), row(1, 0, 0, 0)),  # I 1, U 2, IoU 1/2
            sample('b', row(1, 1, 1, 1), row(1, 1, 1, 0)),  # I 3, U 4, IoU 3/4
            sample('c', row(0, 0, 0, 1), row(0, 0, 0, 1)),  # I 1, U 1, IoU 1
            sample('d', row(1, 0, 0, 0), row(0, 1, 0, 0)),  # I 0, U 2, IoU 0
        ]
    )
    assert metrics['refseg/cIoU'] == pytest.approx(5 / 9)
    assert metrics['refseg/gIoU'] == pytest.approx((0.5 + 0.75 + 1 + 0) / 4)
    assert metrics['refseg/Pr@0.5'] == pytest.approx(2 / 4)  # IoU must exceed 0.5
    assert metrics['refseg/Pr@0.7'] == pytest.approx(2 / 4)
    assert metrics['refseg/Pr@0.9'] == pytest.approx(1 / 4)
    assert metrics['refseg/missing'] == 0
    assert not any('acc' in name for name in metrics)


def test_missing_prediction_counts_as_zero_mask_with_its_union():
    metrics = evaluate(
        [sample('a', row(1, 1, 1, 0), NONE), sample('b', row(1, 0, 0, 0), row(1, 0, 0, 0))]
    )
    assert metrics['refseg/cIoU'] == pytest.approx(1 / 4)
    assert metrics['refseg/gIoU'] == pytest.approx(1 / 2)
    assert metrics['refseg/missing'] == pytest.approx(1 / 2)


def test_no_target_conventions():
    empty = row(0, 0, 0, 0)
    metrics = evaluate(
        [
            sample('a', empty, NONE),  # right: IoU 1
            sample('b', empty, row(1, 1, 0, 0)),  # wrong: IoU 0, U 2
            sample('c', NONE, empty),  # no true mask at all, right
            sample('d', row(1, 1, 0, 0), NONE),  # target left empty, U 2
            sample('e', row(1, 1, 0, 0), row(1, 1, 0, 0)),  # I 2, U 2
        ]
    )
    assert metrics['refseg/N-acc'] == pytest.approx(2 / 3)
    assert metrics['refseg/T-acc'] == pytest.approx(1 / 2)
    assert metrics['refseg/gIoU'] == pytest.approx(3 / 5)
    assert metrics['refseg/cIoU'] == pytest.approx(2 / 6)
    assert metrics['refseg/missing'] == pytest.approx(1 / 2)


def test_only_no_target_samples():
    metrics = evaluate([sample('a', row(0, 0, 0, 0), NONE)])
    assert metrics == {
        'refseg/cIoU': 1.0,
        'refseg/gIoU': 1.0,
        'refseg/N-acc': 1.0,
        **{f'refseg/Pr@{t}': 1.0 for t in (0.5, 0.7, 0.9)},
    }


EMPTY = row(0, 0, 0, 0)
TARGETED = [
    sample('a', EMPTY, NONE),
    sample('b', EMPTY, row(1, 1, 0, 0)),
    sample('c', row(1, 1, 0, 0), row(1, 0, 0, 0)),  # IoU 1/2
    sample('d', row(1, 1, 1, 1), row(1, 1, 1, 0)),  # IoU 3/4
    sample('e', row(0, 1, 0, 0), row(0, 1, 0, 0)),
]  # IoU 1


def test_precision_over_targeted_expressions():
    """As ReLA counts for gRefCOCO: no-target expressions left out, and IoU >= t."""
    metrics = evaluate(TARGETED, select='union', precision='targeted', thresholds=(0.5, 0.75, 0.9))
    assert metrics['refseg/Pr@0.5'] == 1
    assert metrics['refseg/Pr@0.75'] == pytest.approx(2 / 3)
    assert metrics['refseg/Pr@0.9'] == pytest.approx(1 / 3)
    others = evaluate(TARGETED, select='union', thresholds=(0.5, 0.75, 0.9))
    assert others['refseg/Pr@0.5'] == pytest.approx(3 / 5)
    assert {key: value for key, value in metrics.items() if 'Pr@' not in key} == {
        key: value for key, value in others.items() if 'Pr@' not in key
    }
    assert RefSegMetric(precision='targeted').settings['precision'] == 'targeted'


def test_empty_masks_for_everything_have_no_precision():
    silent = [dict(one, pred_masks=torch.as_tensor(NONE)) for one in TARGETED]
    assert evaluate(silent, select='union')['refseg/Pr@0.9'] == pytest.approx(2 / 5)
    assert evaluate(silent, select='union', precision='targeted')['refseg/Pr@0.9'] == 0


def test_precision_of_no_targeted_expression_is_left_out():
    metrics = evaluate(TARGETED[:2], select='union', precision='targeted')
    assert metrics['refseg/N-acc'] == 0.5 and not any('Pr@' in name for name in metrics)


def test_empty_below_changes_the_accuracies_not_the_iou():
    samples = [
        sample('a', row(0, 0, 0, 0), row(1, 0, 0, 0)),
        sample('b', row(1, 1, 1, 1), row(1, 0, 0, 0)),
    ]
    strict, lenient = evaluate(samples), evaluate(samples, empty_below=2)
    assert (strict['refseg/N-acc'], strict['refseg/T-acc']) == (0, 1)
    assert (lenient['refseg/N-acc'], lenient['refseg/T-acc']) == (1, 0)
    assert strict['refseg/gIoU'] == lenient['refseg/gIoU'] == pytest.approx(1 / 8)


def test_select():
    gt = np.concatenate([row(1, 0, 0, 0), row(0, 0, 1, 1)])
    pred = np.concatenate([row(1, 0, 0, 0), row(0, 0, 0, 1), row(1, 1, 1, 1)])
    one_gt = [sample('a', row(1, 0, 0, 1), pred)]
    assert evaluate(one_gt)['refseg/gIoU'] == pytest.approx(1 / 2)
    assert evaluate(one_gt, select='union')['refseg/gIoU'] == pytest.approx(2 / 4)
    two_gt = [sample('a', gt, pred)]
    paired = evaluate(two_gt, select='paired')
    assert paired['refseg/gIoU'] == pytest.approx((1 + 1 / 2) / 2)
    assert paired['refseg/cIoU'] == pytest.approx(2 / 3)
    missing_second = evaluate([sample('a', gt, pred[:1])], select='paired')
    assert missing_second['refseg/gIoU'] == pytest.approx(1 / 2)
    assert missing_second['refseg/cIoU'] == pytest.approx(1 / 3)
    assert missing_second['refseg/missing'] == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="'a' has 2 true masks but select='first'"):
        evaluate(two_gt)


def test_targets_are_binarised():
    summed_polygons = np.array([[[2, 1, 0, 0]]], dtype=np.uint8)
    metrics = evaluate([sample('a', summed_polygons, row(1, 1, 0, 0))])
    assert metrics['refseg/cIoU'] == metrics['refseg/gIoU'] == 1


def test_groups_and_tasks():
    samples = [
        sample('a', row(1, 0, 0, 0), row(1, 0, 0, 0), expression_kind='colour'),
        sample('b', row(1, 0, 0, 0), row(0, 1, 0, 0), expression_kind='left_of'),
        sample('c', row(1, 0, 0, 0), row(1, 0, 0, 0)),
        dict(sample_id='q', task='vqa', pred_text='yes'),
    ]
    metrics = evaluate(samples, group_by='expression_kind', tasks=['refseg'])
    assert metrics['refseg/gIoU'] == pytest.approx(2 / 3)
    assert metrics['refseg/colour/gIoU'] == 1
    assert metrics['refseg/left_of/cIoU'] == 0


def test_repeats_from_samplers_count_once_wherever_they_stand():
    right = sample('a', row(1, 0, 0, 0), row(1, 0, 0, 0))
    wrong = sample('b', row(1, 0, 0, 0), row(0, 1, 0, 0))
    metric = RefSegMetric()
    metric.process(None, [right, right, wrong])
    # MMEngine would cut to the first two records and never see the wrong one.
    assert metric.evaluate(size=2)['refseg/gIoU'] == pytest.approx(1 / 2)


def test_different_samples_under_one_id_are_refused():
    with pytest.raises(ValueError, match="sample_id 'a' of dataset 'd' names two different"):
        evaluate([sample('a', row(1, 0, 0, 0), NONE), sample('a', row(0, 1, 0, 0), NONE)])
    with pytest.raises(ValueError, match='names two different'):
        evaluate(
            [
                sample('a', row(1, 0, 0, 0), NONE, question='red'),
                sample('a', row(1, 0, 0, 0), NONE, question='blue'),
            ]
        )
    two_sets = [
        sample('a', row(1, 0, 0, 0), NONE),
        {**sample('a', row(0, 1, 0, 0), NONE), 'dataset': 'e'},
    ]
    assert evaluate(two_sets)['refseg/gIoU'] == 0


@pytest.mark.parametrize(
    'fault, error, message',
    [
        (dict(pred_masks=np.zeros((1, 2, 2), bool)), ValueError, r"'a'.*\(2, 2\).*\(1, 4\)"),
        (dict(pred_masks=None), KeyError, "'a'.*pred_masks"),
        (dict(gt_masks=None), KeyError, "'a'.*gt_masks"),
        (
            dict(gt_masks=np.zeros((1, 4), bool)),
            ValueError,
            r'gt_masks must have shape \(n, H, W\)',
        ),
        (dict(sample_id=''), ValueError, 'sample_id'),
    ],
)
def test_faulty_samples_are_named(fault, error, message):
    with pytest.raises(error, match=message):
        evaluate([{**sample('a', row(1, 0, 0, 0), NONE), **fault}])


def test_faulty_settings():
    with pytest.raises(ValueError, match='select'):
        RefSegMetric(select='best')
    with pytest.raises(ValueError, match='fractions'):
        RefSegMetric(thresholds=[50])
    with pytest.raises(ValueError, match="no sample of task \\['refseg'\\]"):
        evaluate([dict(sample_id='q', task='vqa')], tasks='refseg')


def slow_reference(pairs):
    """Pixel by pixel in plain Python; IoU by pycocotools."""
    inter = union = 0
    ious = []
    for gt, pred in pairs:
        for t, p in zip(gt.ravel().tolist(), pred.ravel().tolist()):
            inter += bool(t and p)
            union += bool(t or p)
        rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in (pred, gt)]
        ious.append(
            float(coco_mask.iou(rles[:1], rles[1:], [0])[0, 0]) if gt.any() or pred.any() else 1.0
        )
    return inter / union if union else 1.0, sum(ious) / len(ious), ious


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_equals_slow_reference(seed, count, height, width, density):
    rng = np.random.default_rng(seed)
    pairs = [
        (rng.random((height, width)) < density, rng.random((height, width)) < rng.random())
        for _ in range(count)
    ]
    metrics = evaluate([sample(str(i), gt[None], pred[None]) for i, (gt, pred) in enumerate(pairs)])
    ciou, giou, ious = slow_reference(pairs)
    assert metrics['refseg/cIoU'] == pytest.approx(ciou, abs=1e-12)
    assert metrics['refseg/gIoU'] == pytest.approx(giou, abs=1e-12)
    for t in (0.5, 0.7, 0.9):
        assert metrics[f'refseg/Pr@{t}'] == pytest.approx(np.mean([iou > t for iou in ious]))


def test_equals_mmdet_on_non_empty_masks(mmdet_ref_seg_metric):
    rng = np.random.default_rng(3)
    theirs, samples = mmdet_ref_seg_metric, []
    for i, (height, width) in enumerate([(17, 31), (1, 64), (50, 2), (33, 33)]):
        gt, pred = rng.random((2, 1, height, width)) < 0.4
        samples.append(sample(str(i), gt, pred))
        theirs.process(
            None,
            [dict(pred_instances=dict(masks=torch.from_numpy(pred)), gt_masks=_BitmapMasks(gt))],
        )
    expected = theirs.compute_metrics(theirs.results)
    metrics = evaluate(samples)
    assert metrics['refseg/cIoU'] * 100 == pytest.approx(float(expected['cIoU']), rel=1e-6)
    assert metrics['refseg/gIoU'] * 100 == pytest.approx(float(expected['mIoU']), rel=1e-6)


class _BitmapMasks:
    """The one method of mmdet's BitmapMasks that its metric calls."""

    def __init__(self, masks):
        self.masks = masks

    def to_tensor(self, dtype, device):
        return torch.as_tensor(self.masks, dtype=dtype, device=device)


@pytest.fixture
def mmdet_ref_seg_metric():
    """The metric of mmdet, loaded from its file: importing the whole of mmdet takes 20 s."""
    import importlib.util
    from pathlib import Path

    import mmdet
    from mmdet import registry

    path = Path(mmdet.__file__).parent / 'evaluation/metrics/refseg_metric.py'
    registered = dict(registry.METRICS.module_dict)
    registry.METRICS.module_dict.pop('RefSegMetric', None)
    spec = importlib.util.spec_from_file_location('mmdet_refseg_metric', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.RefSegMetric(prefix='mmdet')
    registry.METRICS.module_dict.clear()
    registry.METRICS.module_dict.update(registered)


def test_built_from_config_and_run_by_mmengine_evaluator():
    from mmengine.structures import BaseDataElement

    metric = METRICS.build(dict(type='RefSegMetric', thresholds=(0.25,), prefix='val'))
    element = BaseDataElement(metainfo=dict(sample_id='a', dataset='d'))
    element.gt_masks = torch.ones(1, 5, 3, dtype=torch.bool)
    element.pred_masks = torch.ones(1, 5, 3, dtype=torch.bool)
    evaluator = Evaluator(metric)
    evaluator.process([element], None)
    assert evaluator.evaluate(1) == {
        'val/cIoU': 1.0,
        'val/gIoU': 1.0,
        'val/Pr@0.25': 1.0,
        'val/missing': 0.0,
    }


def reason(sample_id, gt, ignore, pred):
    return dict(sample(sample_id, gt, pred), task='reasonseg', ignore_masks=torch.as_tensor(ignore))


def test_ignored_pixels_count_on_neither_side():
    samples = [
        # Left: target 1 1, prediction 1 0, the rest is ignored: I 1, U 2.
        reason('a', row(1, 1, 1, 0), row(0, 0, 1, 1), row(1, 0, 0, 1)),
        # The prediction covers nothing but ignored pixels: an empty one. I 0, U 1.
        reason('b', row(1, 0, 0, 0), row(0, 1, 1, 0), row(0, 1, 1, 0)),
        # Nothing is ignored: I 2, U 2.
        reason('c', row(1, 1, 0, 0), row(0, 0, 0, 0), row(1, 1, 0, 0)),
    ]
    metrics = evaluate(samples, thresholds=(0.6,))
    assert metrics == {
        'refseg/cIoU': pytest.approx(3 / 5),
        'refseg/gIoU': pytest.approx((1 / 2 + 0 + 1) / 3),
        'refseg/Pr@0.6': pytest.approx(1 / 3),
        'refseg/missing': 0.0,
    }


def test_a_target_that_is_wholly_ignored_is_none():
    metrics = evaluate([reason('a', row(1, 1, 0, 0), row(1, 1, 0, 0), row(1, 1, 0, 0))])
    assert metrics['refseg/gIoU'] == metrics['refseg/cIoU'] == metrics['refseg/N-acc'] == 1


def test_ignored_pixels_belong_to_their_target():
    gt = np.concatenate([row(1, 1, 0, 0), row(0, 0, 1, 1)])
    ignore = np.concatenate([row(0, 1, 0, 0), row(0, 0, 0, 0)])
    pred = np.concatenate([row(1, 0, 0, 0), row(0, 1, 1, 1)])
    paired = evaluate([reason('a', gt, ignore, pred)], select='paired')
    assert paired['refseg/cIoU'] == pytest.approx((1 + 2) / (1 + 3))
    union = evaluate([reason('a', gt, ignore, pred)], select='union')
    assert union['refseg/cIoU'] == 1


def test_masks_to_ignore_must_fit_the_targets():
    faulty = reason('a', row(1, 0, 0, 0), NONE, NONE)
    with pytest.raises(ValueError, match=r"'a': ignore_masks are \(0, 1, 4\), gt_masks \(1, 1, 4"):
        evaluate([faulty])


def test_strict_results_do_not_depend_on_the_task_and_name_no_protocol():
    samples = [
        reason('a', row(1, 1, 0, 0), row(0, 0, 0, 0), NONE),
        reason('b', row(1, 0, 0, 0), row(0, 0, 0, 0), row(1, 0, 0, 0)),
    ]
    metrics = evaluate(samples)
    assert metrics == evaluate(samples, protocol='strict')
    assert metrics['refseg/cIoU'] == pytest.approx(1 / 3)
    assert metrics == evaluate(
        [{k: v for k, v in s.items() if k != 'ignore_masks'} | dict(task='refseg') for s in samples]
    )
    assert 'refseg/protocol' not in metrics


def test_paper_leaves_missing_masks_of_reasonseg_out_of_the_sums():
    zero = row(0, 0, 0, 0)
    samples = [
        reason('a', row(1, 1, 0, 0), zero, NONE),  # IoU 0, not summed
        reason('b', row(1, 1, 1, 0), zero, row(1, 1, 0, 0)),  # I 2, U 3
        reason('c', zero, zero, NONE),  # IoU 0, not summed
        reason('d', row(1, 0, 0, 0), zero, zero),
    ]  # an empty mask is a mask: U 1
    metrics = evaluate(samples, protocol='paper')
    assert metrics['refseg/protocol'] == 'paper'
    assert metrics['refseg/cIoU'] == pytest.approx(2 / 4)
    assert metrics['refseg/gIoU'] == pytest.approx(2 / 3.00001 / 4, abs=1e-9)
    assert metrics['refseg/missing'] == pytest.approx(1 / 3)
    refcoco = evaluate([dict(s, task='refseg') for s in samples], protocol='paper')
    assert refcoco['refseg/cIoU'] == pytest.approx(2 / 6)
    assert refcoco['refseg/gIoU'] == pytest.approx((2 / 3.00001 + 1) / 4, abs=1e-9)


def test_paper_compares_the_first_mask_of_grefcoco():
    gt = row(1, 1, 0, 0)
    both = np.concatenate([row(1, 0, 0, 0), row(0, 1, 0, 0)])
    late = np.concatenate([row(0, 0, 0, 0), row(0, 0, 1, 1)])
    samples = [sample('a', gt, both), sample('b', NONE, late), sample('c', row(0, 0, 0, 0), NONE)]
    strict = evaluate(samples, select='union')
    assert strict['refseg/gIoU'] == pytest.approx((1 + 0 + 1) / 3)
    assert strict['refseg/cIoU'] == pytest.approx(2 / 4)
    assert (strict['refseg/N-acc'], strict['refseg/T-acc']) == (1 / 2, 1)
    for select in ('first', 'union'):
        paper = evaluate(samples, select=select, protocol='paper')
        assert paper['refseg/gIoU'] == pytest.approx((1 / 2.00001 + 1 + 1) / 3, abs=1e-9)
        assert paper['refseg/cIoU'] == pytest.approx(1 / 2)
        assert paper['refseg/N-acc'] == 1


def test_no_target_convention_of_50_pixels():
    def blob(pixels):
        return (np.arange(100) < pixels).reshape(1, 10, 10)

    samples = [
        sample('a', blob(0), blob(49)),
        sample('b', blob(0), blob(50)),
        sample('c', blob(60), blob(49)),
        sample('d', blob(60), blob(50)),
    ]
    metrics = evaluate(samples, select='union', empty_below=50)
    assert (metrics['refseg/N-acc'], metrics['refseg/T-acc']) == (1 / 2, 1 / 2)
    assert metrics['refseg/gIoU'] == pytest.approx((0 + 0 + 49 / 60 + 50 / 60) / 4)
    assert metrics['refseg/cIoU'] == pytest.approx((49 + 50) / (49 + 50 + 60 + 60))


def test_paper_decodes_target_and_ignored_pixels_from_one_code():
    # Isolated: the ignored pixels become foreground.
    isolated = reason('a', row(1, 0, 0, 0), row(0, 0, 0, 1), row(1, 0, 0, 1))
    assert evaluate([isolated], protocol='paper')['refseg/cIoU'] == 1
    assert evaluate([isolated])['refseg/cIoU'] == 1
    # Touching: values 0 1 255 0 toggle at each change, so the code says 0 1 0 1.
    touching = reason('b', row(0, 1, 0, 0), row(0, 0, 1, 0), row(0, 1, 0, 1))
    assert evaluate([touching], protocol='paper')['refseg/cIoU'] == 1
    assert evaluate([touching])['refseg/cIoU'] == pytest.approx(1 / 2)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 12), width=st.integers(1, 12))
def test_paper_target_equals_the_code_of_pycocotools(seed, height, width):
    values = np.random.default_rng(seed).choice([0, 1, 255], (height, width)).astype(np.uint8)
    coded = coco_mask.decode(coco_mask.encode(np.asfortranarray(values))).astype(bool)
    found = reason('a', values[None] == 1, values[None] == 255, coded[None])
    assert evaluate([found], protocol='paper')['refseg/cIoU'] == 1
    wrong = reason('a', values[None] == 1, values[None] == 255, ~coded[None])
    assert evaluate([wrong], protocol='paper')['refseg/cIoU'] == 0


def test_faulty_protocols():
    with pytest.raises(ValueError, match="protocol must be one of .*'loose'"):
        RefSegMetric(protocol='loose')
    with pytest.raises(ValueError, match="protocol='paper' compares the first"):
        RefSegMetric(protocol='paper', select='paired')


def test_groups_of_paper_results_name_the_protocol_too():
    samples = [dict(sample('a', row(1, 0, 0, 0), NONE), expression_kind='phrase')]
    metrics = evaluate(samples, protocol='paper', group_by='expression_kind')
    assert metrics['refseg/phrase/protocol'] == metrics['refseg/protocol'] == 'paper'
    assert next(iter(metrics)) == 'refseg/cIoU'
