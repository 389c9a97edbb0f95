"""What the model answers equals one teacher-forced pass over the finished sequence.

Inference that drifts from training costs accuracy silently, so the whole path is compared: the two
pipelines, batching with padding on either side, the cache, positions and the masks.
"""

import copy

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate

from pixelsail_mm.registry import MODELS, TRANSFORMS
from pixelsail_mm.testing.tiny_models import TINY_EVE, TINY_LLM, byte_tokenizer, tiny_model_config

# Large random weights: a wrong position or mask then moves the logits by far more than rounding.
LLM = dict(TINY_LLM, initializer_range=0.4)
PARTS = [
    {},
    dict(llm=dict(LLM, model_type='llama', tie_word_embeddings=False)),
    dict(neck=dict(type='BilinearUpsampler')),
    dict(prompt_injector=dict(type='PooledPromptInjector')),
    dict(TINY_EVE, backbone=dict(TINY_EVE['backbone'], llm=LLM)),
]


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(params=PARTS, ids=['default', 'llama', 'bilinear', 'pooled', 'eve'])
def model(request, tokenizer):
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_config(tokenizer, **{'llm': LLM, **request.param})).eval()
    if request.param.get('backbone') is not None:
        # Visual weights that are no copies, patches and prompts as loud as the rest.
        for name, parameter in model.backbone.named_parameters():
            if '.visual.' in name or name.startswith('patch_embed'):
                torch.nn.init.normal_(parameter, std=0.4)
    return model


def pipeline(model, tokenizer, generation):
    layout = model.data_preprocessor.image_layout
    return Compose(
        [
            TRANSFORMS.build(stage)
            for stage in (
                dict(type='LoadImage'),
                dict(type='LoadMasks'),
                dict(type='LoadVisualPrompts'),
                dict(type='ResizeToGrid', patch_size=8, max_size=48),
                dict(
                    type='BuildConversation',
                    tokenizer=tokenizer,
                    generation=generation,
                    image_layout=layout,
                    image_in_question=layout == 'rows',
                ),
                dict(type='PackPixelInputs'),
            )
        ]
    )


def records(answer=None):
    """Image with prompts and history, text only, image of another size; new objects each time."""
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (30, 45, 3), dtype=np.uint8),
        None,
        rng.integers(0, 256, (64, 20, 3), dtype=np.uint8),
    ]
    made = []
    for i, image in enumerate(images):
        turns = [dict(human='q', gpt='an earlier answer')] * (i == 0)
        question = 'what is <Prompt4>?' if i == 0 else 'question ' * (i + 1)
        made.append(
            dict(
                img=image,
                conversation=[*turns, dict(human=question, gpt=answer or '')],
                prompts=[dict(id=4, box=[3, 3, 30, 20]), dict(id=9, point=[8, 8])] * (i == 0),
                masks=[np.zeros(image.shape[:2], bool)] if answer and image is not None else [],
                meta=dict(sample_id=str(i)),
            )
        )
    return made


def prompt_of(model, tokenizer, i, **extra):
    packed = pipeline(model, tokenizer, True)(records()[i] | extra)
    return packed, packed['inputs']['input_ids']


def image_tokens(model):
    """Tokens that a random model may write but that would mean an image when read again."""
    return [model.tokens.vpatch, model.tokens.vision_start, model.tokens.vision_end]


def predict(model, batch, **options):
    return model.predict(
        **model.data_preprocessor(pseudo_collate(batch)),
        suppress_tokens=image_tokens(model),
        **options,
    )


def teacher_forced(model, packed, new_ids):
    """Raw outputs of one pass over prompt and answer of one sample."""
    inputs = dict(packed['inputs'])
    inputs['input_ids'] = torch.cat([inputs['input_ids'], new_ids])
    inputs['labels'] = torch.full_like(inputs['input_ids'], -100)
    with torch.no_grad():
        return model(model.data_preprocessor(dict(inputs=[inputs]))['inputs'], mode='tensor')


def assert_same_masks(model, sample, logits):
    """Masks of ``[SEG]`` logits ``(n,h,w)``; pixels on the threshold may fall on either side."""
    _, scores = model.mask_head.predict_by_logits(logits, sample.ori_shape)
    torch.testing.assert_close(sample.pred_scores, scores, atol=1e-4, rtol=1e-3)
    probability = torch.nn.functional.interpolate(
        logits[None], size=sample.ori_shape, mode='bilinear', align_corners=False
    )[0].sigmoid()
    clear = (probability - 0.5).abs() > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(sample.pred_masks[clear], probability[clear] > 0.5)


def test_greedy_ids_are_the_argmax_of_one_pass(model, tokenizer):
    prompts = [prompt_of(model, tokenizer, i) for i in range(3)]
    samples = predict(model, [packed for packed, _ in prompts], max_new_tokens=12)
    for (packed, ids), sample in zip(prompts, samples):
        logits = teacher_forced(model, packed, sample.pred_token_ids)['logits'][0]
        steps = logits[len(ids) - 1 : -1]
        steps[:, image_tokens(model)] = -torch.inf
        chosen = steps.gather(1, sample.pred_token_ids[:, None])[:, 0]
        torch.testing.assert_close(chosen, steps.max(1).values, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_answers_with_and_without_masks(model, tokenizer, dtype):
    """The scores are float32 in both cases, as PixelDataSample demands."""
    half = copy.deepcopy(model)
    for part in (half.backbone, half.prompt_injector, half.neck, half.mask_head):
        part.to(dtype)
    packed, _ = prompt_of(model, tokenizer, 0)
    for bias, count in ((-20.0, 0), (20.0, 3)):
        (sample,) = predict(
            half, [packed], max_new_tokens=3, sequence_bias=[[[model.tokens.seg], bias]]
        )
        assert len(sample.pred_masks) == len(sample.pred_scores) == count
        assert sample.pred_scores.dtype == torch.float32


def test_masks_of_a_free_answer_equal_one_pass(model, tokenizer):
    """Sampling with a bias towards ``[SEG]`` gives answers with several masks."""
    prompts = [prompt_of(model, tokenizer, i) for i in range(3)]
    samples = predict(
        model,
        [packed for packed, _ in prompts],
        max_new_tokens=20,
        do_sample=True,
        top_k=0,
        sequence_bias=[[[model.tokens.seg], 20.0]],
    )
    counts = [int((sample.pred_token_ids == model.tokens.seg).sum()) for sample in samples]
    assert counts[0] > 0 and counts[2] > 0
    for (packed, _), sample, count in zip(prompts, samples, counts):
        if packed['inputs']['image'] is None:
            assert len(sample.pred_masks) == 0
            continue
        logits = teacher_forced(model, packed, sample.pred_token_ids)['heads']['mask'][0]
        assert len(sample.pred_masks) == len(logits) == count
        assert_same_masks(model, sample, logits)


@pytest.mark.parametrize('answer', ['It is [SEG].', '[SEG]'])
def test_the_training_pipeline_gives_the_sequence_that_is_answered(model, tokenizer, answer):
    """Inference with a forced answer and training on that answer see the same inputs and masks."""
    for i in (0, 2):
        asked, _ = prompt_of(model, tokenizer, i, answer_prefix=answer)
        trained = pipeline(model, tokenizer, False)(records(answer)[i])
        ids, full = asked['inputs']['input_ids'], trained['inputs']['input_ids']
        assert torch.equal(ids, full[: len(ids)]) and len(full) == len(ids) + 1
        assert torch.equal(asked['inputs']['image'], trained['inputs']['image'])
        assert torch.equal(asked['inputs']['prompt_map'], trained['inputs']['prompt_map'])
        (sample,) = predict(model, [asked], max_new_tokens=1)
        with torch.no_grad():
            outputs = model(
                model.data_preprocessor(pseudo_collate([trained]))['inputs'], mode='tensor'
            )
        sample.pred_masks, sample.pred_scores = sample.pred_masks[:1], sample.pred_scores[:1]
        assert_same_masks(model, sample, outputs['heads']['mask'][0])
        first = outputs['logits'][0, len(ids) - 1]
        first[image_tokens(model)] = -torch.inf
        assert first[sample.pred_token_ids[0]] >= first.max() - 2e-3
