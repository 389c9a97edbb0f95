"""LoadIgnoreMasks, and the way of ignored pixels into the data sample."""

import numpy as np
import pytest
import torch

from pixelsail_mm.datasets.transforms import LoadIgnoreMasks
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.registry import TRANSFORMS

H, W = 20, 30
SQUARE = [[2, 3, 6, 3, 6, 7, 2, 7]]


def record(targets=1, **more):
    return dict(
        img=np.zeros((H, W, 3), np.uint8),
        img_path='a.png',
        ori_shape=(H, W),
        conversation=[dict(human=f'q{i}', gpt='It is [SEG].') for i in range(targets)],
        masks=[[]] * targets,
        meta=dict(sample_id='s', dataset='d', task='reasonseg'),
        rng=np.random.default_rng(0),
        **more,
    )


def test_masks_are_decoded_in_the_order_of_the_targets():
    results = LoadIgnoreMasks()(record(2, ignore_masks=[[], SQUARE]))
    masks = results['ignore_masks']
    assert masks.shape == (2, H, W) and masks.dtype == bool
    assert masks.sum(axis=(1, 2)).tolist() == [0, 16] and masks[1, 3:7, 2:6].all()


def test_records_without_ignored_pixels_pass_unchanged():
    assert 'ignore_masks' not in LoadIgnoreMasks()(record())
    assert LoadIgnoreMasks()(record(0, ignore_masks=[]))['ignore_masks'].shape == (0, H, W)


@pytest.mark.parametrize(
    'masks, reason',
    [
        ([], 'ignore_masks: 0 masks .* 1 target'),
        ([[], []], 'ignore_masks: 2 masks .* 1 target'),
        ([[[1, 2]]], r'ignore_masks\[0\]\[0\]: a polygon'),
        (['x'], r'ignore_masks\[0\]: unknown'),
    ],
)
def test_faults_are_named(masks, reason):
    with pytest.raises(BadSampleError, match=f'a.png: {reason}'):
        LoadIgnoreMasks()(record(ignore_masks=masks))


def pack(parity_dir, results, decode=True, **options):
    conversation = dict(
        type='BuildConversation', tokenizer=str(parity_dir / 'tokenizer'), **options
    )
    pipeline = [
        dict(type='LoadMasks'),
        dict(type='LoadIgnoreMasks'),
        dict(type='ResizeToGrid', patch_size=16),
        conversation,
        dict(type='PackPixelInputs'),
    ]
    for cfg in pipeline if decode else pipeline[:1] + pipeline[2:]:
        results = TRANSFORMS.build(cfg)(results)
    return results


def test_the_data_sample_carries_them_beside_the_targets(parity_dir):
    sample = pack(parity_dir, record(ignore_masks=[SQUARE]), generation=True)['data_samples']
    assert sample.ignore_masks.dtype == torch.bool and sample.ignore_masks.shape == (1, H, W)
    assert sample.ignore_masks.sum() == 16 and not sample.gt_masks.any()
    assert 'ignore_masks' in sample.to_dict()
    assert 'ignore_masks' not in pack(parity_dir, record(), generation=True)['data_samples']


def test_dropped_turns_lose_them_as_well(parity_dir):
    three = dict(ignore_masks=[SQUARE, [], []])
    whole = pack(parity_dir, record(3, **three))['data_samples']
    assert whole.ignore_masks.shape == whole.gt_masks.shape == (3, H, W)
    one_turn = len(pack(parity_dir, record(1))['inputs']['input_ids'])
    cut = pack(parity_dir, record(3, **three), max_length=one_turn)['data_samples']
    assert cut.dropped_turns == 2
    assert cut.ignore_masks.shape == cut.gt_masks.shape == (1, H, W)
    assert cut.ignore_masks.sum() == 16


def test_a_pipeline_that_does_not_decode_them_is_refused(parity_dir):
    with pytest.raises(TypeError, match='LoadIgnoreMasks'):
        pack(parity_dir, record(ignore_masks=[SQUARE]), decode=False, generation=True)


def test_repr():
    assert repr(LoadIgnoreMasks()) == 'LoadIgnoreMasks()'
