"""Small models and batches made from nothing, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pixelsail_mm.checkpoints.checkpoint import save_weights
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.tokenization import SpecialTokens, build_tokenizer

TINY_LLM = dict(
    model_type='qwen2',
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
# The parts of a tiny EVEv2 model, for `tiny_model_config`; image_layout='rows'.
TINY_EVE = dict(
    backbone=dict(type='EVETransformer', llm=TINY_LLM, patch_size=8, patch_channels=12),
    prompt_injector=dict(type='VisualPromptInjector', project=False),
)


def byte_tokenizer(words: Sequence[str] = ()):
    """Tokenizer of single bytes, then ``words``, then all special tokens; needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return build_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
    )


def tiny_model_config(
    tokenizer: Any, llm: dict | None = None, patch_size: int = 8, **parts
) -> dict:
    """Config of a PixelSAIL of a few thousand parameters.

    Args:
        tokenizer: Tokenizer object or config.
        llm: Decoder settings (default: a two-layer Qwen2 of width 32).
        patch_size: Patch side in pixels.
        **parts: Replacements of top-level keys, e.g. ``neck=dict(type='BilinearUpsampler')``.
    """
    return (
        dict(
            type='PixelSAIL',
            tokenizer=tokenizer,
            backbone=dict(type='SingleTransformer', llm=llm or TINY_LLM, patch_size=patch_size),
            prompt_injector=dict(type='VisualPromptInjector'),
            neck=dict(type='LearnableUpsampler', out_stride=2),
            mask_head=dict(type='SegTokenMaskHead', embed_channels=16, num_points=None),
            distill=[],
            generation=dict(max_new_tokens=4),
        )
        | parts
    )


_FOLDER_CONFIG = """
model = {model!r}
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=8, max_size=64),
    dict(type='BuildConversation', tokenizer='tokenizer', generation=True),
    dict(type='PackPixelInputs'),
]
"""


def write_tiny_model(folder: Path, llm: dict | None = None, seed: int = 0, **parts) -> Path:
    """Write a folder with config, byte tokenizer and random weights, as users make them by hand.

    Args:
        folder: Existing folder, filled with ``config.py``, ``tokenizer/`` and
            ``model.safetensors``.
        llm: See :func:`tiny_model_config`.
        seed: Seed of the weights.
        **parts: See :func:`tiny_model_config`; for the config only, not for the weights.

    Returns:
        ``folder``.
    """
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / 'tokenizer')
    torch.manual_seed(seed)
    model = MODELS.build(tiny_model_config(tokenizer, llm))
    save_weights(model.state_dict(), folder / 'model.safetensors')
    (folder / 'config.py').write_text(
        _FOLDER_CONFIG.format(model=tiny_model_config('tokenizer', llm, **parts))
    )
    return folder


def make_sample(
    tokens: SpecialTokens,
    grid: tuple[int, int] | None,
    num_segs: int = 0,
    prompt_ids: tuple[int, ...] = (),
    patch_size: int = 8,
    text_length: int = 12,
    seed: int = 0,
    image_layout: str = 'block',
) -> tuple[dict, PixelDataSample]:
    """A random packed sample with ``num_segs`` masks and prompts on the first patches.

    Args:
        tokens: Ids of the special tokens.
        grid: Rows and columns of patches; None for text only.
        num_segs: ``[SEG]`` tokens in the answer, with one random mask each.
        prompt_ids: Prompts; prompt number i of the tuple covers patch i.
        patch_size: Patch side in pixels.
        text_length: Ordinary tokens of question and answer together.
        seed: Seed of ids, image and masks.
        image_layout: See :meth:`~pixelsail_mm.tokenization.SpecialTokens.image_ids`.

    Returns:
        ``inputs`` and data sample, as ``PackPixelInputs`` makes them.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid or (0, 0)
    image_ids = tokens.image_ids((rows, columns), image_layout)
    text = torch.randint(0, 200, (text_length,), generator=generator).tolist()
    question = text[: text_length // 2] + [tokens.prompts[k] for k in prompt_ids]
    answer = text[text_length // 2 :] + [tokens.seg] * num_segs + [tokens.eos]
    ids = image_ids + question + answer
    labels = [-100] * (len(ids) - len(answer)) + answer
    inputs = dict(
        input_ids=torch.tensor(ids), labels=torch.tensor(labels), image=None, prompt_map=None
    )
    height, width = rows * patch_size, columns * patch_size
    sample = PixelDataSample(metainfo=dict(sample_id=f'sample-{seed}', ori_shape=(height, width)))
    if grid:
        inputs['image'] = torch.randint(
            0, 256, (3, height, width), generator=generator, dtype=torch.uint8
        )
        prompt_map = torch.full((rows * columns,), -2)
        prompt_map[: len(prompt_ids)] = torch.tensor(prompt_ids, dtype=torch.long)
        inputs['prompt_map'] = prompt_map.view(rows, columns)
    sample.gt_masks = torch.rand(num_segs, height, width, generator=generator) > 0.5
    return inputs, sample


def collate(samples: list[tuple[dict, PixelDataSample]]) -> dict:
    """Batch of lists as MMEngine's ``pseudo_collate`` gives it for packed samples."""
    return dict(
        inputs=[inputs for inputs, _ in samples], data_samples=[sample for _, sample in samples]
    )
