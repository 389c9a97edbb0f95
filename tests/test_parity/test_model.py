"""Forward, losses and gradients against numbers recorded from the authors' code."""

from unittest import mock

import pytest
import torch

from tests.helpers.parity import GRAD_PREFIX, ParityFixtures

LOGITS = dict(atol=1e-4, rtol=1e-4)
LOSS = dict(atol=1e-5, rtol=1e-5)
CASES = ['forward_1img', 'batch2', 'batch3_textonly', 'forward_1img_tied_preproj', 'forward_noseg']


@pytest.fixture(scope='module')
def fixtures(parity_dir):
    return ParityFixtures(parity_dir)


@pytest.fixture(scope='module')
def models(fixtures):
    return {tied: fixtures.build(tied) for tied in (False, True)}


def _points(fixtures, arrays, model):
    """Model and patched ``torch.rand`` that replays the recorded random points."""
    model.mask_head.num_points = fixtures.config['loss']['num_points']
    keys = sorted(
        (k for k in arrays if k.startswith('points/point_rand_')),
        key=lambda k: int(k.rsplit('_', 1)[1]),
    )
    return mock.patch('torch.rand', side_effect=[arrays[k] for k in keys])


def _check_gradients(model, arrays, prefix=''):
    from pixelsail_mm.checkpoints.conversion.official_keys import mm_to_official

    parameters = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    gradients = mm_to_official(parameters, duplicate_tied=False)
    start = prefix + GRAD_PREFIX
    names = [k[len(start) :] for k in arrays if k.startswith(start)]
    for name in names:
        torch.testing.assert_close(
            gradients[name], arrays[start + name], atol=1e-4, rtol=1e-3, msg=name
        )
    return names


def _valid(arrays):
    rows = arrays['input_ids'].shape[1]
    lengths = arrays.get('lengths', torch.tensor([rows] * len(arrays['input_ids'])))
    return torch.arange(rows) < lengths[:, None]


@pytest.mark.parametrize('case', CASES)
def test_forward(fixtures, models, case):
    arrays = fixtures.arrays(case)
    model = models['tied' in case].eval()
    inputs, _ = fixtures.batch(arrays)
    with torch.no_grad():
        output = model(inputs, mode='tensor')
    valid = _valid(arrays)
    torch.testing.assert_close(output['logits'][valid], arrays['logits'][valid], **LOGITS)
    if 'seg_embeddings' in arrays:
        with torch.no_grad():
            segs = torch.cat(model.mask_head.project_segs(output['seg_states']))
        torch.testing.assert_close(segs, arrays['seg_embeddings'], **LOGITS)
    with_masks = [m for m in output['heads']['mask'] if m is not None and len(m)]
    recorded = [arrays[k] for k in sorted(arrays) if k.startswith('mask_logits_')]
    assert len(with_masks) == len(recorded)
    for ours, theirs in zip(with_masks, recorded):
        torch.testing.assert_close(ours, theirs, **LOGITS)
    for row, feature in enumerate(output['features']['mask']):
        key = f'image_features_{row}'
        if feature is not None and key in arrays:
            torch.testing.assert_close(feature, arrays[key], **LOGITS)


@pytest.mark.parametrize('case', CASES)
def test_full_mask_losses_and_gradients(fixtures, models, case):
    arrays = fixtures.arrays(case)
    model = models['tied' in case].train()
    model.mask_head.num_points = None
    model.zero_grad()
    losses = model(*fixtures.batch(arrays), mode='loss')
    for ours, theirs in (
        ('loss_mask', 'loss_mask'),
        ('loss_dice', 'loss_dice'),
        ('loss_lm', 'llm_loss'),
    ):
        torch.testing.assert_close(losses[ours].detach(), arrays[theirs], **LOSS)
    sum(losses.values()).backward()
    _check_gradients(model, arrays)
    assert all(p.grad is not None for p in model.parameters()), 'a parameter got no gradient'


def fixtures_norms(fixtures, case):
    import json

    recorded = json.loads((fixtures.root / 'expected_scalars.json').read_text())['grad_norms']
    for key in (case, f'{case}/full', f'{case}/corrected'):
        if key in recorded:
            return recorded[key]
    return {}


@pytest.mark.parametrize(
    'case', ['forward_1img', 'forward_1img_tied_preproj', 'batch2', 'batch3_textonly']
)
def test_gradient_norm_of_every_parameter(fixtures, models, case):
    from pixelsail_mm.checkpoints.conversion.official_keys import mm_to_official

    arrays = fixtures.arrays(case)
    model = models['tied' in case].train()
    model.mask_head.num_points = None
    model.zero_grad()
    sum(model(*fixtures.batch(arrays), mode='loss').values()).backward()
    gradients = mm_to_official(
        {k: p.grad for k, p in model.named_parameters()}, duplicate_tied=False
    )
    norms = fixtures_norms(fixtures, case)
    assert norms, f'no recorded norms for {case}'
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize('case', ['forward_1img', 'batch2', 'batch3_textonly'])
def test_point_losses(fixtures, models, case):
    arrays = fixtures.arrays(case)
    model = models[False].train()
    model.zero_grad()
    with _points(fixtures, arrays, model):
        losses = model(*fixtures.batch(arrays), mode='loss')
    for ours, theirs in (
        ('loss_mask', 'loss_mask'),
        ('loss_dice', 'loss_dice'),
        ('loss_lm', 'llm_loss'),
    ):
        torch.testing.assert_close(losses[ours].detach(), arrays[f'points/{theirs}'], **LOSS)
    sum(losses.values()).backward()
    _check_gradients(model, arrays, 'points/')


def test_count_mismatch_drops_the_mask_loss(fixtures, models):
    arrays = fixtures.arrays('forward_1img')
    recorded = fixtures_scalars(fixtures, 'forward_count_mismatch')
    model = models[False].train()
    model.mask_head.num_points = None
    inputs, samples = fixtures.batch(arrays)
    samples[0].gt_masks = torch.cat([samples[0].gt_masks, samples[0].gt_masks[:1]])
    losses = model(inputs, samples, mode='loss')
    assert losses['loss_mask'].item() == recorded['loss_mask'] == 0
    assert losses['loss_lm'].item() == pytest.approx(recorded['llm_loss'], abs=1e-5)


def fixtures_scalars(fixtures, start):
    import json

    recorded = json.loads((fixtures.root / 'expected_scalars.json').read_text())
    return next(value for key, value in recorded.items() if key.startswith(start))


def test_rotary(fixtures, models):
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    arrays = fixtures.arrays('forward_1img')
    rotary = models[False].backbone.llm.model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, arrays['inv_freq_fp32'])
    cos, sin = rotary(arrays['rope_q_in'], arrays['position_ids'])
    query, key = apply_rotary_pos_emb(arrays['rope_q_in'], arrays['rope_k_in'], cos, sin)
    torch.testing.assert_close(query, arrays['rope_q_out'], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(key, arrays['rope_k_out'], atol=1e-5, rtol=1e-5)


def test_hidden_states(fixtures, models):
    arrays = fixtures.arrays('forward_1img')
    model = models[False].eval()
    inputs, _ = fixtures.batch(arrays)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(inputs), arrays['input_embeddings'], **LOGITS)
        torch.testing.assert_close(model.encode(inputs), arrays['last_hidden_state'], **LOGITS)
