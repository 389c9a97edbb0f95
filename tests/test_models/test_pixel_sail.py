"""The meta-architecture: mixed batches, swapped parts, dummies for ZeRO, no NaN."""

import pytest
import torch

from pixelsail_mm.command_line import explain
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, collate, make_sample
from pixelsail_mm.testing.tiny_models import tiny_model_config as config


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return MODELS.build(config(tokenizer)).train()


def mixed(tokens):
    """Two [SEG] and prompts, text only, image without masks, one [SEG] on another grid."""
    return [
        make_sample(tokens, (2, 3), 2, (4, 0), seed=1),
        make_sample(tokens, None, seed=2),
        make_sample(tokens, (3, 2), 0, seed=3),
        make_sample(tokens, (4, 1), 1, (7,), seed=4),
    ]


def _losses(model, samples):
    return model(**model.data_preprocessor(collate(samples)), mode='loss')


def test_mixed_batch_equals_its_samples(model):
    """States and masks do not depend on what else is in the batch."""
    samples = mixed(model.tokens)
    model.eval()
    together = model(model.data_preprocessor(collate(samples))['inputs'], mode='tensor')
    segs = 0
    for row, sample in enumerate(samples):
        alone = model(model.data_preprocessor(collate([sample]))['inputs'], mode='tensor')
        length = alone['logits'].shape[1]
        torch.testing.assert_close(
            together['logits'][row, :length], alone['logits'][0], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            together['seg_states'][row], alone['seg_states'][0], atol=1e-5, rtol=1e-4
        )
        segs += len(alone['seg_states'][0])
        if alone['heads']['mask'][0] is None:
            assert together['heads']['mask'][row] is None
        else:
            torch.testing.assert_close(
                together['heads']['mask'][row], alone['heads']['mask'][0], atol=1e-5, rtol=1e-4
            )
    assert segs == 3


def test_mask_loss_is_the_mean_over_all_masks(model):
    samples = mixed(model.tokens)
    whole = _losses(model, samples)
    first, last = _losses(model, samples[:1]), _losses(model, samples[3:])
    for name in ('loss_mask', 'loss_dice'):
        expected = (2 * first[name] + last[name]) / 3
        assert whole[name].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize('pick', ['text', 'no_masks', 'no_prompts', 'mixed'])
@pytest.mark.parametrize(
    'parts',
    [
        {},
        dict(prompt_injector=dict(type='PooledPromptInjector')),
        dict(neck=dict(type='BilinearUpsampler')),
        dict(neck=dict(type='BilinearUpsampler', out_stride=2)),
        dict(neck=dict(type='LearnableUpsampler', out_stride=4, max_channels=16)),
        dict(mask_head=dict(type='SegTokenMaskHead', embed_channels=8, num_points=24)),
    ],
)
def test_every_parameter_gets_a_gradient(tokenizer, pick, parts):
    """Otherwise ZeRO hangs when one process has no image, mask or prompt."""
    torch.manual_seed(0)
    model = MODELS.build(config(tokenizer, **parts)).train()
    samples = mixed(model.tokens)
    batch = dict(text=[samples[1]], no_masks=[samples[2]], no_prompts=samples[1:3], mixed=samples)[
        pick
    ]
    losses = _losses(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


PRECISIONS = {
    'bfloat16': dict(whole=torch.bfloat16),
    'float16': dict(whole=torch.float16),
    'autocast': dict(autocast=True),
    # As in pixelsail_0.5b.py without DeepSpeed: training, then evaluation without autocast.
    'backbone and autocast': dict(backbone=torch.bfloat16, autocast=True),
    'backbone': dict(backbone=torch.bfloat16),
}


@pytest.mark.parametrize('precision', PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize(
    'parts',
    [
        dict(mask_head=dict(type='SegTokenMaskHead', embed_channels=8, num_points=24)),
        dict(
            prompt_injector=dict(type='PooledPromptInjector'), neck=dict(type='BilinearUpsampler')
        ),
    ],
    ids=['learned', 'plain'],
)
def test_half_precision(tokenizer, parts, precision):
    """Losses and masks are those of float32 but for rounding, gradients are finite."""

    def build():
        torch.manual_seed(0)
        return MODELS.build(config(tokenizer, **parts)).train()

    model, exact = build(), build()
    dtypes = (
        dict.fromkeys(('backbone', 'prompt_injector', 'neck', 'mask_head'), precision.get('whole'))
        | precision
    )
    for name, dtype in dtypes.items():
        if isinstance(dtype, torch.dtype) and name != 'whole':
            getattr(model, name).to(dtype)
    samples = mixed(model.tokens)
    for batch in ([samples[1]], [samples[2]], samples):
        torch.manual_seed(1)
        expected = _losses(exact, batch)
        torch.manual_seed(1)
        with torch.autocast('cpu', torch.bfloat16, enabled='autocast' in precision):
            losses = _losses(model, batch)
        for name, loss in losses.items():
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(expected[name].item(), rel=0.02, abs=1e-6)
        sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    data = model.data_preprocessor(collate(samples))
    with torch.autocast('cpu', torch.bfloat16, enabled='autocast' in precision):
        answers = model.eval().predict(
            **data, max_new_tokens=2, sequence_bias=[[[model.tokens.seg], 50.0]]
        )
    assert [len(answer.pred_masks) for answer in answers] == [4, 0, 2, 3]


def test_modules_are_called_equally_often_whatever_the_batch(model):
    """ZeRO-3 gathers at each module call: counts must not depend on the samples."""
    counts = {}
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(
                lambda *_, name=name: counts.__setitem__(name, counts.get(name, 0) + 1)
            )
    samples = mixed(model.tokens)
    recorded = []
    for batch in ([samples[1]], samples, [samples[2]], [samples[0], samples[0]]):
        counts.clear()
        _losses(model, batch)
        recorded.append(dict(counts))
    assert all(other == recorded[0] for other in recorded[1:])
    assert len(recorded[0]) > 20


def test_lm_weight_follows_the_masks(model):
    samples = mixed(model.tokens)
    with_masks, without = samples[:1], [make_sample(model.tokens, (2, 3), 0, (4, 0), seed=1)]
    assert model.lm_loss_weight_with_masks == 0.1
    model.lm_loss_weight_with_masks = 1.0
    unscaled = _losses(model, with_masks)['loss_lm'].item()
    model.lm_loss_weight_with_masks = 0.1
    assert _losses(model, with_masks)['loss_lm'].item() == pytest.approx(0.1 * unscaled, rel=1e-5)
    assert _losses(model, without)['loss_mask'].item() == 0


def test_batch_without_any_label_is_not_nan(model):
    inputs, sample = make_sample(model.tokens, (2, 2), 1)
    inputs['labels'] = torch.full_like(inputs['labels'], -100)
    losses = _losses(model, [(inputs, sample)])
    assert losses['loss_lm'].item() == 0
    assert losses['loss_mask'].item() > 0 and all(map(torch.isfinite, losses.values()))


def test_text_never_sees_the_future_and_patches_see_all(model):
    """Change the last text token: nothing before moves. Change the last patch: all move."""
    inputs, sample = make_sample(model.tokens, (2, 3))
    model.eval()

    def states(sample_inputs):
        return model.encode(model.data_preprocessor(dict(inputs=[sample_inputs]))['inputs'])[0]

    base = states(inputs)
    changed = dict(inputs, input_ids=inputs['input_ids'].clone())
    changed['input_ids'][-1] = 3
    torch.testing.assert_close(states(changed)[:-1], base[:-1])
    image = inputs['image'].clone()
    image[:, -8:, -8:] = 255 - image[:, -8:, -8:]
    moved = (states(dict(inputs, image=image)) - base).abs().amax(1)
    assert (moved > 1e-6).all()


def test_pooled_prompt_is_the_mean_of_its_patches(tokenizer):
    torch.manual_seed(0)
    model = MODELS.build(config(tokenizer, prompt_injector=dict(type='PooledPromptInjector')))
    inputs, sample = make_sample(model.tokens, (2, 3), 0, (4,))
    inputs['prompt_map'][0, :2] = 4
    batch = model.data_preprocessor(dict(inputs=[inputs]))['inputs']
    where = torch.nonzero(batch['input_ids'][0] == model.tokens.prompts[4])[-1]
    patches = model.backbone.embed_patches(batch['vision_patches'], batch['grids'])
    torch.testing.assert_close(model.embed(batch)[0, where[0]], patches[:2].mean(0))


def test_swapped_patch_size_is_named(model):
    inputs, sample = make_sample(model.tokens, (2, 2))
    inputs['image'] = torch.zeros(3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match='patch_size'):
        model.data_preprocessor(collate([(inputs, sample)]))


@pytest.mark.parametrize(
    'key, value',
    [
        ('labels', torch.zeros(3, dtype=torch.long)),
        ('labels', None),
        ('input_ids', [1, 2]),
        ('turn_ids', torch.zeros(3, dtype=torch.long)),
        ('image', torch.zeros(3, 15, 16, dtype=torch.uint8)),
        ('image', torch.zeros(16, 16, dtype=torch.uint8)),
        ('image', torch.zeros(3, 16, 16)),
        ('prompt_map', torch.zeros(1, 2, dtype=torch.long)),
        ('prompt_map', torch.full((2, 2), 15)),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_named(model, key, value):
    inputs, sample = make_sample(model.tokens, (2, 2))
    inputs[key] = value
    with pytest.raises(ConfigError, match=f'sample 0 of the batch: {key}|vpatch'):
        model.data_preprocessor(collate([(inputs, sample)]))


@pytest.mark.parametrize(
    'parts, named',
    [
        (dict(backbone=dict(type='SingleTransformer', llm=dict(hidden_size=8))), 'model_type'),
        (dict(backbone=dict(type='SingleTransformer', llm=TINY_LLM, rotary_layout='up')), 'layout'),
        (dict(neck=dict(type='LearnableUpsampler', out_stride=3)), 'out_stride=3'),
        (dict(trainable=['neck.no_such_part']), 'no_such_part'),
    ],
)
def test_mistakes_in_a_config_are_explained(tokenizer, parts, named):
    """At the command line as a message, which only some errors become."""
    with pytest.raises(ValueError, match=named) as error:
        MODELS.build(config(tokenizer, **parts))
    assert named in explain(error.value)


def test_unknown_mode(model):
    with pytest.raises(ValueError, match='mode'):
        model({}, mode='banana')


@pytest.mark.parametrize(
    'settings, named',
    [
        (dict(num_beams=3), 'num_beams'),
        (dict(cache_implementation='static'), 'static'),
        (dict(prefill_chunk_size=4), 'prefill_chunk_size'),
    ],
)
def test_settings_that_give_wrong_answers_are_refused(model, settings, named):
    data = model.data_preprocessor(collate([make_sample(model.tokens, (2, 2))]))
    with pytest.raises(ValueError, match=named):
        model.predict(**data, **settings)
