"""Any number of heads: losses, missing targets, training of one, predictions, both spellings."""

import pytest
import torch
from mmengine.logging import MMLogger

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.heads import target_watch
from pixelsail_mm.models.heads.names import head_configs, module_name
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import (
    TINY_EVE,
    byte_tokenizer,
    collate,
    make_sample,
    tiny_model_config,
)
from tests.test_models.test_heads import point_head  # noqa: F401  registers the head

MASK_HEAD = dict(type='SegTokenMaskHead', embed_channels=16, num_points=None)
BOTH = dict(mask_head=MASK_HEAD, heads=dict(point=dict(type='PointHead')))


@pytest.fixture
def said(monkeypatch):
    """What the model warned of."""
    texts = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', texts.append)
    return texts


def build(**parts):
    torch.manual_seed(0)
    return MODELS.build(tiny_model_config(byte_tokenizer(), **{**BOTH, **parts}))


def with_points(model, grid=(2, 3), segs=2, seed=0, masks=True):
    inputs, sample = make_sample(model.tokens, grid, segs, seed=seed)
    sample.gt_points = torch.rand(segs, 2, generator=torch.Generator().manual_seed(seed))
    if not masks:
        sample.gt_masks = sample.gt_masks[:0]
    return inputs, sample


def losses_of(model, samples):
    return model(**model.data_preprocessor(collate(samples)), mode='loss')


def test_each_head_has_its_losses_and_masks_learn_as_before():
    model = build()
    alone = MODELS.build(tiny_model_config(byte_tokenizer()))
    alone.load_state_dict(
        {
            key: value
            for key, value in model.state_dict().items()
            if not key.startswith('point_head.')
        }
    )
    found = losses_of(model, [with_points(model)])
    before = losses_of(alone, [with_points(alone)])
    assert set(found) == {*before, 'point.loss_point'}
    for name, value in before.items():
        assert torch.equal(found[name], value), name


def test_a_sample_may_lack_the_target_of_one_head(said):
    model = build()
    masks_only = make_sample(model.tokens, (2, 3), 1, seed=1)
    points_only = with_points(model, seed=2, masks=False)
    both = losses_of(model, [masks_only, points_only])
    for name, sample in (
        ('loss_mask', masks_only),
        ('loss_dice', masks_only),
        ('point.loss_point', points_only),
    ):
        torch.testing.assert_close(both[name], losses_of(model, [sample])[name])
    assert losses_of(model, [points_only])['loss_mask'] == 0
    assert '[SEG] tokens' not in ' '.join(said)


def test_targets_of_another_number_are_left_out_and_said(said):
    model = build()
    inputs, sample = with_points(model)
    sample.gt_points = sample.gt_points[:1]
    found = losses_of(model, [(inputs, sample)])
    assert found['point.loss_point'] == 0 and found['loss_mask'] > 0
    assert "2 [SEG] tokens but {'gt_points': 1}" in ' '.join(said)


def test_losses_have_the_names_that_the_head_says():
    model = build()
    model.point_head.losses = ('loss_centre',)
    message = r"PointHead.loss gives \['loss_point'\], its `losses` names \['loss_centre'\]"
    with pytest.raises(ConfigError, match=message):
        losses_of(model, [with_points(model)])


def test_a_target_that_no_sample_has_is_said_once(monkeypatch):
    warnings = []
    monkeypatch.setattr(target_watch, 'warn_once', warnings.append)
    model = build()
    model.point_head.targets = ('gt_pointz',)
    no_seg, text_only = make_sample(model.tokens, (2, 2)), make_sample(model.tokens, None)
    for _ in range(30):
        losses_of(model, [no_seg, text_only])
    assert warnings == []
    for _ in range(30):
        losses_of(model, [with_points(model), text_only])
    [text] = warnings
    assert 'model.heads.point learns from gt_pointz, which no sample of the first 20' in text


@pytest.mark.parametrize('parts', [{}, TINY_EVE], ids=['block', 'rows'])
def test_every_weight_has_a_gradient_whatever_the_batch_holds(parts):
    model = build(**parts)
    layout = 'rows' if parts else 'block'
    text_only = make_sample(model.tokens, None, image_layout=layout)
    no_seg = make_sample(model.tokens, (2, 2), image_layout=layout)
    for batch in ([text_only], [no_seg], [text_only, no_seg]):
        model.zero_grad()
        sum(losses_of(model, batch).values()).backward()
        without = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert not without


def test_one_head_trains_alone():
    model = build(trainable=['heads.point'])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {
        'point_head.image_proj.weight',
        'point_head.image_proj.bias',
        'point_head.seg_proj.weight',
        'point_head.seg_proj.bias',
    }
    assert module_name('heads.mask.seg_projector') == 'mask_head.seg_projector'


def test_answers_have_the_fields_of_every_head():
    model = build()
    inputs, sample = make_sample(model.tokens, (2, 3), 2)
    text = make_sample(model.tokens, None)
    # The answer of the sample is forced, so that it has two [SEG].
    batch = model.data_preprocessor(collate([(inputs, sample), text]))
    answered, plain = model(**batch, mode='predict')
    assert answered.pred_points.shape == (2, 2) and answered.pred_masks.shape == (2, 16, 24)
    assert plain.pred_points.shape == (0, 2) and plain.pred_masks.shape == (0, 0, 0)
    raw = model(batch['inputs'], mode='tensor')['heads']
    torch.testing.assert_close(raw['point'][0], answered.pred_points)
    assert raw['point'][1] is None
    assert set(answered.further_predictions()) == {'points'}


def test_a_model_without_mask_head():
    model = build(mask_head=None)
    found = losses_of(model, [with_points(model, masks=False)])
    assert set(found) == {'point.loss_point', 'loss_lm'}
    (sample,) = model(
        **model.data_preprocessor(collate([make_sample(model.tokens, (2, 3), 1)])), mode='predict'
    )
    assert 'pred_masks' not in sample and sample.pred_points.shape == (1, 2)


@pytest.mark.parametrize(
    ('mask_head', 'heads', 'message'),
    [
        (None, None, 'give at least one head'),
        (MASK_HEAD, dict(mask=MASK_HEAD), 'both are given'),
        (MASK_HEAD, {'a box': MASK_HEAD}, "'a box' is no name"),
    ],
    ids=['none', 'twice', 'name'],
)
def test_wrong_heads(mask_head, heads, message):
    with pytest.raises(ConfigError, match=message):
        head_configs(mask_head, heads)


def test_spellings():
    assert head_configs(MASK_HEAD, None) == head_configs(None, dict(mask=MASK_HEAD, box=None))


def test_distillation_of_the_neck_needs_the_mask_head():
    loss = dict(type='ExpertDistillLoss', expert=lambda samples: [], feature='neck')
    with pytest.raises(ConfigError, match='no `mask`'):
        build(mask_head=None, distill=[loss])
