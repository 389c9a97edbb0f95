"""Rotary positions of patches: which frequency follows which axis, and text is left alone."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pixelsail_mm.models.backbones.rotary import PatchRotaryEmbedding

ORIGINAL = LlamaRotaryEmbedding(
    LlamaConfig(hidden_size=8, num_attention_heads=1, rope_theta=16.0)
)  # frequencies 1, 1/2, 1/4, 1/8
X = torch.zeros(1, 1, 8)


def angles(layout, row, column):
    """Angles of the four frequencies at one position."""
    positions = torch.tensor([7, row, column]).view(3, 1, 1)
    cos, sin = PatchRotaryEmbedding(ORIGINAL, layout)(X, positions)
    assert torch.equal(cos[..., :4], cos[..., 4:]) and torch.equal(sin[..., :4], sin[..., 4:])
    return torch.atan2(sin, cos)[0, 0, :4].tolist()


@pytest.mark.parametrize(
    'layout, by_rows, by_columns',
    [
        ('sections', [1.0, 0.5, 0, 0], [0, 0, 0.25, 0.125]),
        ('interleaved', [1.0, 0, 0.25, 0], [0, 0.5, 0, 0.125]),
    ],
)
def test_layouts(layout, by_rows, by_columns):
    assert angles(layout, 1, 0) == pytest.approx(by_rows)
    assert angles(layout, 0, 1) == pytest.approx(by_columns)


def test_text_turns_as_in_the_ordinary_embedding():
    assert angles('sections', 2, 2) == angles('interleaved', 2, 2)
    assert angles('interleaved', 2, 2) == pytest.approx([2.0, 1.0, 0.5, 0.25])


def test_unknown_layout_is_named():
    with pytest.raises(ValueError, match="rotary_layout='spiral'"):
        PatchRotaryEmbedding(ORIGINAL, 'spiral')
