"""The head alone, and in a model that its config builds."""

import pytest
import torch
from example_project import AreaHead
from mmengine.config import Config

from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, collate, make_sample
from tests.test_engine.mixed_components import KINDS, make_batch
from tests.test_models.test_calls_of_modules import calls_of


def with_masks(*areas):
    """A sample of 10x10 pixels whose masks have these areas."""
    sample = PixelDataSample(metainfo=dict(ori_shape=(10, 10)))
    sample.gt_masks = torch.stack([torch.arange(100).view(10, 10) < area for area in areas])
    return sample


def test_loss_is_the_mean_difference_of_all_masks():
    head = AreaHead(in_channels=2, hidden_size=3)
    for weight in head.parameters():
        torch.nn.init.zeros_(weight)  # says 0.5 of everything
    states = [torch.randn(2, 3), torch.randn(1, 3)]
    losses = head.loss(states, [None, None], [with_masks(50, 20), with_masks(100)])
    assert losses.keys() == set(head.losses)
    assert losses['loss_area'].item() == pytest.approx(2 * (0 + 0.3 + 0.5) / 3)


def test_head_learns_areas():
    head, states, samples = AreaHead(2, 8), [torch.randn(2, 8)], [with_masks(5, 70)]
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        head.loss(states, [None], samples)['loss_area'].backward()
        optimizer.step()
    head.predict(states[0], None, samples[0])
    assert samples[0].pred_areas.tolist() == pytest.approx([0.05, 0.7], abs=0.03)


@pytest.fixture
def model():
    """A small model with the heads of the config."""
    cfg = Config.fromfile('projects/example_project/configs/pixelsail_mini_area.py')
    settings = cfg.model.to_dict() | dict(tokenizer=byte_tokenizer(), distill=[])
    settings['backbone']['llm'] = TINY_LLM
    return MODELS.build(settings)


def test_model_of_the_config_trains_and_answers_with_both_heads(model):
    data = model.data_preprocessor(collate([make_sample(model.tokens, (2, 3), 2)]))
    losses = model(**data, mode='loss')
    assert {'loss_mask', 'loss_dice', 'area.loss_area'} <= losses.keys()
    losses['area.loss_area'].backward()
    assert model.area_head.layers[0].weight.grad.abs().sum() > 0
    sample, text_only = model(
        **model.data_preprocessor(
            collate([make_sample(model.tokens, (2, 3), 2), make_sample(model.tokens, None)])
        ),
        mode='predict',
    )
    assert sample.pred_areas.shape == (2,) and len(sample.pred_masks) == 2
    assert text_only.pred_areas.shape == (0,)


def test_calls_of_modules_do_not_depend_on_the_batch(model):
    """What ZeRO-3 needs, see docs/extend.md."""
    calls = {kind: calls_of(model, collate(make_batch(model.tokens, kind))) for kind in KINDS}
    for kind, found in calls.items():
        assert found == calls[KINDS[0]], kind
