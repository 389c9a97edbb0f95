"""One tiny Pixel-SAIL and one batch, for checks that weights survive a way in or out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import (
    TINY_LLM,
    byte_tokenizer,
    collate,
    make_sample,
    tiny_model_config,
)

#: Tokens a user added to the vocabulary besides those of Pixel-SAIL.
NEW_TOKENS = ('<ship>', '<harbour>')
#: Largest difference of float32 logits that counts as equal.
LOGIT_TOLERANCE = 1e-5
#: Small adapters.
LORA = dict(
    type='LoraConfig', r=4, lora_alpha=16, lora_dropout=0.05, bias='none', task_type='CAUSAL_LM'
)
#: 4-bit weights.
NF4 = dict(
    type='BitsAndBytesConfig',
    load_in_4bit=True,
    bnb_4bit_quant_type='nf4',
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype='torch.float32',
)
# 64 weights share a scale in 4-bit: layers of whole blocks.
_LORA_LLM = TINY_LLM | dict(hidden_size=64)


def tokenizer_with(new_tokens: Sequence[str] = NEW_TOKENS):
    """Byte tokenizer with Pixel-SAIL's special tokens and ``new_tokens`` behind them."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(new_tokens), special_tokens=True)
    return tokenizer


def tiny_pixel_sail(
    tied: bool,
    new_tokens: Sequence[str] = NEW_TOKENS,
    seed: int = 0,
    tokenizer=None,
    llm: dict | None = None,
    **parts,
) -> nn.Module:
    """A PixelSAIL of a few thousand random parameters, in eval mode.

    Args:
        tied: Whether input embedding and output head are one tensor.
        new_tokens: Tokens added to the byte tokenizer.
        seed: Seed of the weights.
        tokenizer: A tokenizer (object, folder or config) in the place of :func:`tokenizer_with`.
        llm: Settings of the decoder that differ from
            :data:`~pixelsail_mm.testing.tiny_models.TINY_LLM`.
        **parts: See :func:`~pixelsail_mm.testing.tiny_models.tiny_model_config`.
    """
    tokenizer = tokenizer_with(new_tokens) if tokenizer is None else tokenizer
    settings = TINY_LLM | dict(tie_word_embeddings=tied) | dict(llm or {})
    torch.manual_seed(seed)
    return MODELS.build(tiny_model_config(tokenizer, settings, **parts)).eval()


def lora_backbone(
    tied: bool = True, lora: dict | None = LORA, kind: str = 'SingleTransformer', **settings
) -> dict:
    """Config of a tiny transformer with adapters.

    Args:
        tied: Whether input embedding and output head are one tensor.
        lora: Settings of the adapters; None for none.
        kind: Type of the transformer.
        **settings: Its further settings, such as ``quantization``.
    """
    return dict(
        type=kind,
        llm=_LORA_LLM | dict(tie_word_embeddings=tied),
        patch_size=8,
        lora=lora,
        **settings,
    )


def tiny_lora(tied: bool = True, seed: int = 0, **settings) -> nn.Module:
    """:func:`tiny_pixel_sail` with a :func:`lora_backbone`.

    Args:
        tied: See there.
        seed: Seed of the weights.
        **settings: See :func:`lora_backbone`.
    """
    return tiny_pixel_sail(tied, seed=seed, backbone=lora_backbone(tied, **settings))


def fixed_batch(model: nn.Module) -> dict:
    """Preprocessed inputs of two samples: image, prompt, ``[SEG]`` and new tokens; text only.

    Args:
        model: A PixelSAIL; its tokenizer gives the ids of :data:`NEW_TOKENS` it knows.
    """
    vocabulary = model.tokenizer.get_vocab()
    new_ids = [vocabulary[token] for token in NEW_TOKENS if token in vocabulary]
    samples = [
        make_sample(model.tokens, (2, 3), num_segs=1, prompt_ids=(0, 2), seed=1),
        make_sample(model.tokens, None, seed=2),
    ]
    for inputs, _ in samples:
        inputs['input_ids'] = torch.cat([inputs['input_ids'], torch.tensor(new_ids).long()])
        inputs['labels'] = torch.cat([inputs['labels'], torch.full((len(new_ids),), -100)])
    return model.data_preprocessor(collate(samples))['inputs']


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    """Vocabulary logits ``(B,L,V)`` of :func:`fixed_batch`, in float32.

    Args:
        model: A PixelSAIL, put into eval mode.
    """
    model.eval()
    return model.tensor(fixed_batch(model))['logits'].float()


def assert_same_logits(expected: Tensor, model: nn.Module) -> None:
    """Check that ``model`` gives ``expected`` on :func:`fixed_batch`.

    Args:
        expected: What :func:`logits_of` gave before.
        model: The model that came back from a file.

    Raises:
        AssertionError: A logit differs by more than :data:`LOGIT_TOLERANCE`.
    """
    torch.testing.assert_close(logits_of(model), expected, atol=LOGIT_TOLERANCE, rtol=0)
