"""Arithmetic of distillation, and its place in the model."""

import pytest
import torch
import torch.nn.functional as F

from pixelsail_mm.models.losses import ExpertDistillLoss
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import byte_tokenizer, collate, make_sample
from pixelsail_mm.testing.tiny_models import tiny_model_config as config


def _expert(maps):
    return lambda data_samples: maps


def test_mean_over_images_with_a_feature():
    torch.manual_seed(0)
    ours = [torch.randn(4, 6, 3), torch.randn(2, 2, 3), torch.randn(2, 2, 3), None]
    theirs = [torch.randn(5, 8, 8), torch.randn(5, 2, 2), None, None]
    loss = ExpertDistillLoss(_expert(theirs), in_channels=3, expert_channels=5, loss_weight=0.5)
    expected = 0
    for feature, target in zip(ours[:2], theirs[:2]):
        target = F.interpolate(target[None], size=feature.shape[:2], mode='bilinear')[0]
        expected += ((loss.proj(feature) - target.permute(1, 2, 0))**2).mean()
    torch.testing.assert_close(loss(ours, [None] * 4), 0.5 * expected / (2 + 1e-4))


def test_nothing_to_compare_still_has_a_gradient():
    loss = ExpertDistillLoss(_expert([None]), in_channels=3, expert_channels=5)
    value = loss([None], [None])
    value.backward()
    assert value.item() == 0 and loss.proj.weight.grad is not None


def test_wrong_channels_are_named():
    loss = ExpertDistillLoss(_expert([torch.zeros(7, 2, 2)]), in_channels=3, expert_channels=5)
    with pytest.raises(ValueError, match='expert_channels=7'):
        loss([torch.zeros(2, 2, 3)], [None])


def test_unknown_feature_is_named():
    with pytest.raises(ValueError, match='feature'):
        ExpertDistillLoss(_expert([]), in_channels=3, feature='encoder')


@pytest.mark.parametrize('feature', ['neck', 'backbone'])
def test_in_the_model(feature, tmp_path):
    """Expert weights stay out of the checkpoint, the heads are in it, and gradients reach us."""
    import numpy as np
    (tmp_path / 'expert').mkdir()
    np.savez(tmp_path / 'expert' / 'a.npz', feature=np.ones((5, 3, 3), np.float32))
    model = MODELS.build(config(byte_tokenizer(), distill=[dict(
        type='ExpertDistillLoss', name='cache', feature=feature, expert_channels=5,
        expert=dict(type='CachedExpert', root=str(tmp_path / 'expert'),
                    image_root=str(tmp_path)))]))
    assert [k for k in model.state_dict() if k.startswith('distill')] == [
        'distill.0.proj.weight', 'distill.0.proj.bias']
    inputs, sample = make_sample(model.tokens, (2, 3))
    sample.set_metainfo(dict(img_path=str(tmp_path / 'a.png')))
    text = make_sample(model.tokens, None, seed=1)
    text[1].set_metainfo(dict(img_path=None))
    data = model.data_preprocessor(collate([(inputs, sample), text]))
    losses = model(**data, mode='loss')
    losses['loss_distill_cache'].backward()
    assert losses['loss_distill_cache'].item() > 0
    assert model.backbone.patch_embed.weight.grad.abs().sum() > 0
