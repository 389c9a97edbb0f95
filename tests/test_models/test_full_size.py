"""One optimizer step of the full 0.5B architecture on the CPU."""

import resource
import time

import pytest
import torch

from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import byte_tokenizer, collate, make_sample

QWEN_05B = dict(
    model_type='qwen2',
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    rope_theta=1e6,
    tie_word_embeddings=True,
)
VOCABULARY = 151_936 + 20
LIMIT_GIB = 24


@pytest.mark.slow
def test_one_step_of_the_half_billion_model(capsys):
    """AdamW in float32 on one 256x256 image with two masks fits into 24 GB."""
    torch.manual_seed(0)
    started = time.time()
    model = MODELS.build(
        dict(
            type='PixelSAIL',
            tokenizer=byte_tokenizer(),
            backbone=dict(
                type='SingleTransformer',
                llm=QWEN_05B,
                patch_size=16,
                vocab_size=VOCABULARY,
                gradient_checkpointing=True,
            ),
            prompt_injector=dict(type='VisualPromptInjector'),
            neck=dict(type='LearnableUpsampler', out_stride=2),
            mask_head=dict(type='SegTokenMaskHead', embed_channels=512, num_points=12544),
        )
    )
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.49e9 < parameters < 0.52e9
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-5)
    sample = make_sample(model.tokens, (16, 16), 2, (3,), patch_size=16)
    batch = model.data_preprocessor(collate([sample]))
    before = model.mask_head.seg_projector[0].weight.detach().clone()
    losses = model.train()(**batch, mode='loss')
    sum(losses.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not torch.equal(before, model.mask_head.seg_projector[0].weight)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(
            f'\n0.5B step: {parameters / 1e6:.0f} M parameters, {time.time() - started:.0f} s, '
            f'peak memory {peak:.1f} GiB'
        )
    assert peak < LIMIT_GIB
