"""PixelDataSample: typed fields, copies and pickling."""

import pickle

import numpy as np
import pytest
import torch

from pixelsail_mm.structures import PixelDataSample

H, W = 4, 6


def _sample():
    return PixelDataSample(
        metainfo=dict(ori_shape=(H, W), sample_id='a', question='where?'),
        gt_masks=torch.ones(2, H, W, dtype=torch.bool),
        prompt_masks=torch.zeros(1, H, W, dtype=torch.bool),
        prompt_ids=torch.tensor([3]),
        pred_masks=torch.zeros(0, H, W, dtype=torch.bool),
        pred_scores=torch.zeros(0),
        pred_text='no mask',
    )


def test_fields_and_metainfo_are_kept_apart():
    sample = _sample()
    assert set(sample.keys()) == {
        'gt_masks',
        'prompt_masks',
        'prompt_ids',
        'pred_masks',
        'pred_scores',
        'pred_text',
    }
    assert sample.metainfo == dict(ori_shape=(H, W), sample_id='a', question='where?')
    assert sample.pred_text == 'no mask' and sample.gt_masks.shape == (2, H, W)
    assert 'image' not in sample and sample.get('image') is None


@pytest.mark.parametrize(
    'name, value',
    [
        ('gt_masks', torch.zeros(1, H, W, dtype=torch.uint8)),
        ('gt_masks', torch.zeros(H, W, dtype=torch.bool)),
        ('gt_masks', [[True]]),
        ('prompt_masks', torch.zeros(1, H, W)),
        ('prompt_ids', torch.zeros(1)),
        ('prompt_ids', torch.zeros(1, 1, dtype=torch.long)),
        ('image', torch.zeros(3, H, W)),
        ('pred_masks', torch.zeros(1, H, W)),
        ('pred_scores', torch.zeros(1, dtype=torch.float64)),
        ('pred_text', None),
    ],
)
def test_wrong_type_names_the_field(name, value):
    with pytest.raises(TypeError, match=f'PixelDataSample.{name} must be'):
        setattr(_sample(), name, value)


def test_wrong_size_names_both_sizes():
    with pytest.raises(ValueError, match=r'pred_masks has .*\(6, 4\).*\(4, 6\)'):
        _sample().pred_masks = torch.zeros(1, W, H, dtype=torch.bool)


def test_size_is_free_while_ori_shape_is_unknown():
    sample = PixelDataSample(gt_masks=torch.ones(1, 2, 3, dtype=torch.bool))
    assert sample.gt_masks.shape == (1, 2, 3)


def test_constructor_checks_too():
    with pytest.raises(TypeError, match='gt_masks'):
        PixelDataSample(gt_masks=torch.ones(1, 2, 3))


def _assert_equal(a, b):
    assert isinstance(b, PixelDataSample)
    assert a.metainfo == b.metainfo and set(a.keys()) == set(b.keys())
    for key in a.keys():
        left, right = a.get(key), b.get(key)
        assert torch.equal(left, right) if torch.is_tensor(left) else left == right


@pytest.mark.parametrize(
    'copy',
    [
        lambda s: pickle.loads(pickle.dumps(s)),  # noqa: S301 - bytes made on the same line
        lambda s: s.clone(),
        lambda s: s.to('cpu'),
        lambda s: s.cpu(),
        lambda s: s.detach(),
        lambda s: s.numpy().to_tensor(),
    ],
    ids=['pickle', 'clone', 'to', 'cpu', 'detach', 'numpy'],
)
def test_copies_are_equal(copy):
    sample = _sample()
    _assert_equal(sample, copy(sample))


def test_to_moves_every_tensor():
    moved = _sample().to('meta')
    assert all(moved.get(k).device.type == 'meta' for k in moved.keys() if k != 'pred_text')
    assert moved.pred_text == 'no mask'


def test_delete_and_pop():
    sample = _sample()
    del sample.gt_masks
    assert torch.equal(sample.pop('prompt_ids'), torch.tensor([3]))
    assert 'gt_masks' not in sample and 'prompt_ids' not in sample
    with pytest.raises(AttributeError):
        sample.gt_masks  # noqa: B018


def test_numpy_fields_are_checked():
    with pytest.raises(TypeError, match='gt_masks'):
        _sample().gt_masks = np.zeros((1, H, W), np.uint8)
