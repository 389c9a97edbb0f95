"""Weights that keep the signal: measured on random inputs, through the real neck and head."""

import pytest
import torch
from torch import nn

from pixelsail_mm.models.heads import SegTokenMaskHead
from pixelsail_mm.models.initialisation import keep_variance
from pixelsail_mm.models.necks import LearnableUpsampler


@pytest.mark.parametrize(
    'layer, shape',
    [
        (nn.Linear(96, 160), (512, 96)),
        (nn.Conv2d(32, 48, 3), (4, 32, 16, 16)),
        (nn.Conv2d(64, 64, 3, groups=64), (4, 64, 16, 16)),
        (nn.ConvTranspose2d(64, 32, 2, stride=2), (4, 64, 16, 16)),
    ],
)
def test_output_varies_as_much_as_the_input(layer, shape):
    torch.manual_seed(0)
    keep_variance(layer, gain=2.0)
    assert layer(torch.randn(shape)).std().item() == pytest.approx(2.0, rel=0.15)
    assert not layer.bias.any()


def test_other_modules_are_left_alone():
    norm = nn.LayerNorm(4)
    keep_variance(norm)
    assert norm.weight.eq(1).all()


def spread(neck, head, states):
    """How much the features of different pixels differ, as a share of their length."""
    features = torch.stack(head.project_images(neck(states))).flatten(0, 2)
    return ((features - features.mean(0)).norm(dim=1).mean() / features.norm(dim=1).mean()).item()


def test_features_of_different_pixels_stay_apart():
    torch.manual_seed(0)
    states = [torch.randn(6, 5, 64)]
    default = spread(LearnableUpsampler(64, patch_size=8), SegTokenMaskHead(64, 64, 64), states)
    kept = spread(
        LearnableUpsampler(64, patch_size=8, keep_variance=True),
        SegTokenMaskHead(64, 64, 64, embed_std=0.3),
        states,
    )
    assert default < 0.3 < 0.5 < kept


def test_embeddings_have_the_wanted_size():
    torch.manual_seed(0)
    head = SegTokenMaskHead(64, 64, 256, embed_std=0.3)
    assert head.project_segs([torch.randn(500, 64)])[0].std().item() == pytest.approx(0.3, rel=0.15)


def test_wide_states_pass_the_pre_projector():
    torch.manual_seed(0)
    neck = LearnableUpsampler(128, patch_size=4, max_channels=32, keep_variance=True)
    features = neck.pre_projector(torch.randn(500, 128))
    assert features.std().item() == pytest.approx(1.0, rel=0.15)
