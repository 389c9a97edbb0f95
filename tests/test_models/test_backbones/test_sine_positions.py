"""Fixed features of a patch's place, alone and in the backbone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.models.backbones.sine_positions import sine_positions
from pixelsail_mm.models.backbones.single_transformer import SingleTransformer

SIDES = st.integers(1, 12)


@given(SIDES, SIDES)
def test_half_the_channels_tells_the_row_and_half_the_column(rows, columns):
    places = sine_positions([(rows, columns)], 16).view(rows, columns, 16)
    assert torch.equal(places[:, :, :8], places[:, :1, :8].expand(-1, columns, -1))
    assert torch.equal(places[:, :, 8:], places[:1, :, 8:].expand(rows, -1, -1))
    assert len(places.flatten(0, 1).unique(dim=0)) == rows * columns
    assert places.abs().max() <= 1


def test_places_are_shares_of_the_image():
    """The middle of three patches is where the middle of five is; a value by hand."""
    three, five = (sine_positions([(1, n)], 8)[:, 4:] for n in (3, 5))
    torch.testing.assert_close(three[1], five[2])
    # Middle: one turn of the first frequency is half done; the second is sqrt(20) times slower.
    expected = torch.tensor([0.0, -1.0, 0.6461137, 0.7632412])
    torch.testing.assert_close(three[1], expected, atol=1e-6, rtol=0)


def test_images_of_a_batch_follow_each_other_and_text_has_none():
    together = sine_positions([(2, 3), (0, 0), (1, 2), (2, 3)], 8)
    parts = [sine_positions([grid], 8) for grid in ((2, 3), (1, 2), (2, 3))]
    assert torch.equal(together, torch.cat(parts))


def test_channels_must_suit():
    with pytest.raises(ValueError, match='multiple of 4: 6'):
        sine_positions([(1, 1)], 6)


def backbone(**options):
    torch.manual_seed(0)
    llm = dict(
        model_type='llama',
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=8,
    )
    return SingleTransformer(llm, patch_size=2, **options)


def test_backbone_adds_them_to_equal_patches():
    patches = torch.ones(6, 12)
    plain = backbone().embed_patches(patches, [(2, 3)])
    assert len(plain.unique(dim=0)) == 1
    placed = backbone(patch_positions=0.5).embed_patches(patches, [(2, 3)])
    torch.testing.assert_close(placed - plain, 0.5 * sine_positions([(2, 3)], 16))
