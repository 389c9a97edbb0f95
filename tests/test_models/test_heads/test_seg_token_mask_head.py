"""The folded image projector: the same logits, losses and gradients in fewer products."""

import copy

import pytest
import torch

from pixelsail_mm.models.heads import SegTokenMaskHead
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config


@pytest.fixture(scope='module')
def heads():
    plain = SegTokenMaskHead(12, 16, embed_channels=10, num_points=None).double()
    folded = copy.deepcopy(plain)
    folded.fold_projector = True
    return plain, folded


def batch():
    states = [torch.randn(n, 16, dtype=torch.float64, requires_grad=True) for n in (2, 1)]
    maps = [
        torch.randn(h, w, 12, dtype=torch.float64, requires_grad=True) for h, w in ((4, 6), (5, 3))
    ]
    samples = [
        PixelDataSample(gt_masks=torch.rand(n, 8, 12) > 0.5, ori_shape=(8, 12)) for n in (2, 1)
    ]
    return states, maps, samples


def run(head, states, maps, samples):
    head.zero_grad()
    for tensor in (*states, *maps):
        tensor.grad = None
    losses = head.loss(states, head.project_images(maps), samples)
    sum(losses.values()).backward()
    gradients = {name: weight.grad.clone() for name, weight in head.named_parameters()}
    return losses, gradients | {
        f'input {i}': tensor.grad.clone() for i, tensor in enumerate((*states, *maps))
    }


def test_losses_and_gradients(heads):
    given = batch()
    results = [run(head, *given) for head in heads]
    for one, other in zip(*results):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_predictions(heads):
    states, maps, samples = batch()
    found = []
    for head in heads:
        (feature,) = head.project_images(maps[:1])
        head.predict(states[0], feature, samples[0])
        found.append((samples[0].pred_masks, samples[0].pred_scores))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    none = PixelDataSample(ori_shape=(8, 12))
    heads[1].predict(states[0][:0], feature, none)
    assert none.pred_masks.shape == (0, 8, 12)


@pytest.mark.parametrize(('feature', 'folds'), [('neck', False), ('backbone', True), (None, True)])
def test_a_loss_that_reads_the_projection_gets_it(feature, folds):
    distill = dict(
        type='ExpertDistillLoss', expert=lambda samples: [], feature=feature, expert_channels=4
    )
    config = tiny_model_config(
        byte_tokenizer(),
        mask_head=dict(type='SegTokenMaskHead', embed_channels=8, fold_projector=True),
        distill=[dict(distill, name='x')] if feature else [],
    )
    assert MODELS.build(config).mask_head.fold_projector is folds
