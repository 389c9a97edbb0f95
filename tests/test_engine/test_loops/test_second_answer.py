"""Samples without a mask are asked again with the beginning that their benchmark prescribes."""

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate

from pixelsail_mm.engine.loops.second_answer import answer_twice
from pixelsail_mm.registry import MODELS, TRANSFORMS
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, tiny_model_config

PREFIX = 'It is [SEG].'


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope='module')
def model(tokenizer):
    torch.manual_seed(0)
    llm = dict(TINY_LLM, initializer_range=0.4)
    return MODELS.build(tiny_model_config(tokenizer, llm=llm)).eval()


def pack(tokenizer, number, retry=None, prefix=None):
    """One of three packed samples of different sizes; the first has a visual prompt."""
    size = [(30, 45), (64, 20), (16, 16)][number]
    image = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    record = dict(
        img=image,
        masks=[],
        prompts=[dict(id=4, box=[3, 3, 30, 20])] * (number == 0),
        conversation=[dict(human='question ' * (number + 1), gpt='')],
        meta=dict(sample_id=str(number), **(dict(retry_prefix=retry) if retry else {})),
    )
    if prefix:
        record['answer_prefix'] = prefix
    return Compose(
        [
            TRANSFORMS.build(stage)
            for stage in (
                dict(type='LoadImage'),
                dict(type='LoadMasks'),
                dict(type='LoadVisualPrompts'),
                dict(type='ResizeToGrid', patch_size=8, max_size=48),
                dict(type='BuildConversation', tokenizer=tokenizer, generation=True),
                dict(type='PackPixelInputs'),
            )
        ]
    )(record)


def predict(model, *samples, **options):
    """Predictions; the model may not write [SEG] of its own accord, nor image tokens."""
    tokens = model.tokens
    never = [tokens.seg, tokens.vpatch, tokens.vision_start, tokens.vision_end]

    def step(batch):
        return model.predict(**model.data_preprocessor(batch), suppress_tokens=never, **options)

    return answer_twice(step, model.tokenizer, pseudo_collate(list(samples)))


def test_the_second_answer_is_that_to_a_forced_beginning(model, tokenizer):
    again, untouched, also = predict(
        model, pack(tokenizer, 0, PREFIX), pack(tokenizer, 1), pack(tokenizer, 2, PREFIX)
    )
    assert untouched.get('retried') is None and len(untouched.pred_masks) == 0
    for sample, number in ((again, 0), (also, 2)):
        (expected,) = predict(model, pack(tokenizer, number, prefix=PREFIX))
        assert sample.retried and expected.get('retried') is None
        assert sample.pred_text == expected.pred_text and sample.pred_text.startswith(PREFIX)
        assert sample.pred_masks.shape == expected.pred_masks.shape == (1, *sample.ori_shape)
        torch.testing.assert_close(sample.pred_scores, expected.pred_scores, atol=1e-4, rtol=1e-3)
        assert (sample.pred_masks != expected.pred_masks).float().mean() < 0.01


def test_an_answer_with_a_mask_is_kept(model, tokenizer):
    (sample,) = predict(model, pack(tokenizer, 1, PREFIX, prefix='[SEG] it is'))
    assert sample.get('retried') is None
    assert sample.pred_text.startswith('[SEG] it is') and len(sample.pred_masks) == 1


def test_a_beginning_without_a_mask_ends_the_matter(model, tokenizer):
    (sample,) = predict(model, pack(tokenizer, 1, 'Nothing.'))
    assert sample.retried and sample.pred_text.startswith('Nothing.')
    assert len(sample.pred_masks) == 0
