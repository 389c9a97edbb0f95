"""The project plugs into the model by its config alone."""

import sys
from pathlib import Path

import pytest
import torch

from pixelsail_mm.config import read_config

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    yield read_config(PROJECT / 'configs' / 'pixelsail_tiny_focal.py')
    sys.modules.pop('focal_mask_head', None)


def test_config_builds_the_head_and_trains(config):
    from pixelsail_mm.registry import MODELS
    from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, collate, make_sample

    settings = config.model.to_dict() | dict(tokenizer=byte_tokenizer(), distill=[])
    settings['backbone']['llm'] = TINY_LLM
    model = MODELS.build(settings)
    assert type(model.mask_head).__name__ == 'FocalMaskHead'
    data = model.data_preprocessor(collate([make_sample(model.tokens, (2, 3), 2)]))
    losses = model(**data, mode='loss')
    losses['loss_mask'].backward()
    assert losses['loss_mask'].item() > 0
    assert model.mask_head.image_projector[0].weight.grad.abs().sum() > 0


def test_equals_the_formula(config):
    """Focal loss of one mask, written out."""
    from pixelsail_mm.registry import MODELS

    head = MODELS.build(
        dict(
            type='FocalMaskHead',
            in_channels=4,
            hidden_size=4,
            embed_channels=4,
            num_points=None,
            focal_weight=3.0,
        )
    )
    torch.manual_seed(0)
    logits, target = torch.randn(1, 5, 6), torch.rand(1, 5, 6) > 0.5
    p = logits.sigmoid()
    hard = torch.where(target, 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log())
    loss = head.loss_by_logits([logits], [target])['loss_mask']
    assert loss.item() == pytest.approx(3.0 * hard.mean().item(), rel=1e-3)
