"""Channels-last upsampler against torch's plain modules; the baseline; strides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelsail_mm.models.necks import BilinearUpsampler, LearnableUpsampler


def _plain(neck, feature):
    """The same blocks in channels-first form through torch's own modules."""
    x = feature.permute(2, 0, 1)[None]
    if neck.pre_projector is not None:
        x = neck.pre_projector(feature).permute(2, 0, 1)[None]
    for block in neck.blocks:
        x = F.gelu(F.conv_transpose2d(x, block.upsample.weight, block.upsample.bias, stride=2))
        x = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=1, groups=x.shape[1])
        x = F.conv2d(x, block.pointwise.weight, block.pointwise.bias)
        x = block.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x[0].permute(1, 2, 0)


@pytest.mark.parametrize(('channels', 'limit'), [(12, 1024), (12, 8)])
def test_equals_plain_modules(channels, limit):
    torch.manual_seed(0)
    neck = LearnableUpsampler(channels, patch_size=16, out_stride=4, max_channels=limit)
    maps = [torch.randn(*size, channels) for size in ((3, 4), (2, 2), (3, 4), (1, 5))]
    for ours, feature in zip(neck(maps), maps):
        torch.testing.assert_close(ours, _plain(neck, feature), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ('patch', 'stride', 'blocks'), [(16, 2, 3), (32, 2, 4), (8, 2, 2), (16, 4, 2), (16, 16, 0)]
)
def test_number_of_blocks(patch, stride, blocks):
    neck = LearnableUpsampler(4, patch_size=patch, out_stride=stride)
    assert len(neck.blocks) == blocks
    assert neck([torch.randn(2, 3, 4)])[0].shape == (2 * patch // stride, 3 * patch // stride, 4)


@pytest.mark.parametrize('stride', [3, 32])
def test_impossible_stride(stride):
    with pytest.raises(ValueError, match='out_stride'):
        LearnableUpsampler(4, patch_size=16, out_stride=stride)


def test_baseline_has_no_weights_and_resizes():
    neck = BilinearUpsampler(4, patch_size=16, out_stride=4)
    assert not list(neck.parameters())
    feature = torch.randn(2, 3, 4)
    expected = F.interpolate(feature.permute(2, 0, 1)[None], scale_factor=4, mode='bilinear')
    torch.testing.assert_close(neck([feature])[0], expected[0].permute(1, 2, 0))
    assert BilinearUpsampler(4, patch_size=16)([feature])[0] is feature


def test_parameters_keep_the_shapes_of_the_release():
    block = LearnableUpsampler(6, patch_size=4, out_stride=2).blocks[0]
    assert isinstance(block.upsample, nn.ConvTranspose2d)
    assert block.upsample.weight.shape == (6, 6, 2, 2)
    assert block.depthwise.weight.shape == (6, 1, 3, 3)
    assert block.pointwise.weight.shape == (6, 6, 1, 1)
