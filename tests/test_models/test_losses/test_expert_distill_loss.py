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
        expected += ((loss.proj(feature) - target.permute(1, 2, 0)) ** 2).mean()
    torch.testing.assert_close(loss(ours, [None] * 4), 0.5 * expected / (2 + 1e-4))


def test_nothing_to_compare_still_has_a_gradient():
    loss = ExpertDistillLoss(_expert([None]), in_channels=3, expert_channels=5)
    value = loss([None], [None])
    value.backward()
    assert value.item() == 0 and loss.proj.weight.grad is not None


@pytest.mark.parametrize('distance, value', [('mse', 1.0), ('cosine', 1.0), ('both', 2.0)])
def test_distances(distance, value):
    """Ours (1, 0) and theirs (0, 1) everywhere: squared error and cosine distance are 1."""
    theirs = torch.zeros(2, 3, 3)
    theirs[1] = 1
    loss = ExpertDistillLoss(
        _expert([theirs]), in_channels=2, expert_channels=2, loss_weight=1.0, distance=distance
    )
    with torch.no_grad():
        loss.proj.weight.copy_(torch.eye(2))
        loss.proj.bias.zero_()
    ours = torch.tensor([1.0, 0.0]).expand(4, 5, 2)
    assert loss([ours], [None]).item() == pytest.approx(value / (1 + 1e-4))


def test_unmatched_map_keeps_its_graph():
    """A map without expert feature gets a gradient of zeros: ZeRO and DDP wait for it."""
    loss = ExpertDistillLoss(_expert([None]), in_channels=3, expert_channels=5)
    ours = torch.randn(2, 2, 3, requires_grad=True)
    value = loss([ours], [None])
    value.backward()
    assert value.item() == 0 and torch.equal(ours.grad, torch.zeros_like(ours))


@pytest.mark.parametrize('features', [[None, None], [(2, 3), None], [(2, 3), (4, 1)]])
def test_projection_is_called_once_whatever_the_batch(features):
    loss = ExpertDistillLoss(
        _expert([None, torch.randn(5, 2, 2)]), in_channels=3, expert_channels=5
    )
    calls = []
    loss.proj.register_forward_hook(lambda *args: calls.append(1))
    loss([size and torch.randn(*size, 3) for size in features], [None, None])
    assert len(calls) == 1


def test_expert_module_stays_outside():
    """An expert that is a module is frozen, and neither saved nor trained nor switched."""

    class Expert(torch.nn.Conv2d):
        def forward(self, data_samples):
            return [super(Expert, self).forward(torch.ones(1, 3, 4, 4))[0] for _ in data_samples]

    expert = Expert(3, 5, 1)
    loss = ExpertDistillLoss(expert, in_channels=2, expert_channels=5).train()
    loss([torch.randn(2, 2, 2)], [None]).backward()
    assert list(loss.state_dict()) == ['proj.weight', 'proj.bias']
    assert expert.weight.grad is None and not expert.training
    assert len(list(loss.parameters())) == 2


def test_low_precision_model_is_compared_in_float32():
    """In bfloat16 a mean over many cells would stop growing; the result is float32."""
    theirs = torch.randn(5, 64, 64)
    loss = ExpertDistillLoss(_expert([theirs]), in_channels=3, expert_channels=5)
    ours = torch.randn(64, 64, 3)
    exact = loss([ours], [None])
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(loss([ours], [None]), exact, rtol=0, atol=0)
    rounded = loss.bfloat16()([ours.bfloat16()], [None])
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=1e-2)


def test_expert_that_forgets_a_sample_is_named():
    loss = ExpertDistillLoss(_expert([None]), in_channels=3, name='teacher')
    with pytest.raises(ValueError, match='teacher gives 1 maps for 2'):
        loss([None, None], [None, None])


def test_unknown_distance_is_named():
    with pytest.raises(ValueError, match='distance'):
        ExpertDistillLoss(_expert([]), in_channels=3, distance='l1')


def test_wrong_channels_are_named():
    loss = ExpertDistillLoss(_expert([torch.zeros(7, 2, 2)]), in_channels=3, expert_channels=5)
    with pytest.raises(ValueError, match='expert_channels=7'):
        loss([torch.zeros(2, 2, 3)], [None])


def test_unknown_feature_is_named():
    with pytest.raises(ValueError, match='feature'):
        ExpertDistillLoss(_expert([]), in_channels=3, feature='encoder')


def test_losses_of_one_name_are_refused(tmp_path):
    """Two cached experts: the second would hide the first in the log and in the sum."""
    entry = dict(
        type='ExpertDistillLoss',
        feature='neck',
        expert=dict(type='CachedExpert', root=str(tmp_path), key='sample_id'),
    )
    with pytest.raises(ValueError, match='CachedExpert.*name'):
        MODELS.build(config(byte_tokenizer(), distill=[entry, entry]))
    model = MODELS.build(config(byte_tokenizer(), distill=[entry, dict(entry, name='b')]))
    assert [loss.name for loss in model.distill] == ['CachedExpert', 'b']


@pytest.mark.parametrize('feature', ['neck', 'backbone'])
def test_in_the_model(feature, tmp_path):
    """Expert weights stay out of the checkpoint, the heads are in it, and gradients reach us."""
    import numpy as np

    (tmp_path / 'expert').mkdir()
    np.savez(tmp_path / 'expert' / 'a.npz', feature=np.ones((5, 3, 3), np.float32))
    model = MODELS.build(
        config(
            byte_tokenizer(),
            distill=[
                dict(
                    type='ExpertDistillLoss',
                    name='cache',
                    feature=feature,
                    expert_channels=5,
                    expert=dict(
                        type='CachedExpert', root=str(tmp_path / 'expert'), image_root=str(tmp_path)
                    ),
                )
            ],
        )
    )
    assert [k for k in model.state_dict() if k.startswith('distill')] == [
        'distill.0.proj.weight',
        'distill.0.proj.bias',
    ]
    inputs, sample = make_sample(model.tokens, (2, 3))
    sample.set_metainfo(dict(img_path=str(tmp_path / 'a.png')))
    text = make_sample(model.tokens, None, seed=1)
    text[1].set_metainfo(dict(img_path=None))
    data = model.data_preprocessor(collate([(inputs, sample), text]))
    losses = model(**data, mode='loss')
    losses['loss_distill_cache'].backward()
    assert losses['loss_distill_cache'].item() > 0
    assert model.backbone.patch_embed.weight.grad.abs().sum() > 0


def test_channel_weights_scale_the_squared_errors():
    features = [torch.zeros(1, 1, 2)]
    loss = ExpertDistillLoss(
        expert=lambda samples: [torch.tensor([[[1.0]], [[2.0]]])],
        in_channels=2,
        expert_channels=2,
        loss_weight=1.0,
        channel_weights=[16.0, 1.0],
        name='x',
    )
    with torch.no_grad():
        loss.proj.bias.zero_()
    assert loss(features, [None]).item() == pytest.approx((16 * 1 + 4) / 2, rel=1e-3)
    assert set(loss.state_dict()) == {'proj.weight', 'proj.bias'}


@pytest.mark.parametrize(
    'options',
    [
        dict(channel_weights=[1.0]),
        dict(channel_weights=[1.0, -1.0]),
        dict(channel_weights=[1.0, float('nan')]),
        dict(channel_weights=[1.0, 1.0], distance='cosine'),
    ],
)
def test_channel_weights_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match='channel_weights'):
        ExpertDistillLoss(expert=lambda samples: [], in_channels=2, expert_channels=2, **options)
