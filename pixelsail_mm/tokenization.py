"""Tokenizer construction and the ids of Pixel-SAIL's special tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Mapping

NUM_PROMPTS = 15
SEG_TOKEN = '[SEG]'
VISION_START, VISION_END, VISION_PATCH = '<vision>', '</vision>', '<vpatch>'
END_OF_TEXT = '<|endoftext|>'
# Order matters: the rows of a released checkpoint follow it (model facts: "Sequence").
VISION_TOKENS = (VISION_START, VISION_PATCH, '<vrow_sep>', '<vframe_sep>', VISION_END,
                 '<|vis_cls|>')
PROMPT_TOKENS = tuple(f'<Prompt{i}>' for i in range(NUM_PROMPTS))
TASK_TOKENS = (SEG_TOKEN, '<p>', '</p>', *PROMPT_TOKENS, '<NO_Prompt>')


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens the model treats specially.

    Attributes:
        seg: ``[SEG]``, whose hidden state becomes a mask query.
        vpatch: Placeholder of one image patch.
        vision_start: ``<vision>``.
        vision_end: ``</vision>``.
        prompts: ``<Prompt0>`` ... ``<Prompt14>``.
        eos: ``<|endoftext|>``, which closes every answer.
        pad: Id used to fill batches; never attended to nor trained on.
        vocab_size: Rows the embedding needs, ``len(tokenizer)``.
    """

    seg: int
    vpatch: int
    vision_start: int
    vision_end: int
    prompts: tuple[int, ...]
    eos: int
    pad: int
    vocab_size: int

    @classmethod
    def from_tokenizer(cls, tokenizer) -> SpecialTokens:
        """Look the ids up in ``tokenizer``.

        Raises:
            ValueError: A token is missing; :func:`build_tokenizer` adds them.
        """
        vocab = tokenizer.get_vocab()
        missing = [t for t in (*VISION_TOKENS, *TASK_TOKENS, END_OF_TEXT) if t not in vocab]
        if missing:
            raise ValueError(f'tokenizer {tokenizer.name_or_path!r} lacks {missing}; '
                             'build it with pixelsail_mm.tokenization.build_tokenizer')
        eos = vocab[END_OF_TEXT]
        pad = tokenizer.pad_token_id
        return cls(
            seg=vocab[SEG_TOKEN],
            vpatch=vocab[VISION_PATCH],
            vision_start=vocab[VISION_START],
            vision_end=vocab[VISION_END],
            prompts=tuple(vocab[t] for t in PROMPT_TOKENS),
            eos=eos,
            pad=eos if pad is None else pad,
            vocab_size=len(tokenizer))


def build_tokenizer(cfg: Any):
    """Build a Hugging Face tokenizer that knows all of Pixel-SAIL's special tokens.

    Missing tokens are added in a fixed order, so every process and every session gives them the
    same ids.

    Args:
        cfg: A folder or hub name; a dict with ``pretrained_model_name_or_path`` and other
            keywords of ``AutoTokenizer.from_pretrained`` (XTuner's config style; ``type`` is
            accepted and ignored); or a tokenizer object, to which missing tokens are added.

    Returns:
        ``transformers.PreTrainedTokenizerFast``. Equal string or dict configs share one object.

    Raises:
        FileNotFoundError: The folder does not exist or holds no tokenizer.
    """
    if isinstance(cfg, (str, os.PathLike)):
        return _load(str(cfg), ())
    if isinstance(cfg, Mapping):
        kwargs = {k: v for k, v in cfg.items() if k != 'type'}
        path = kwargs.pop('pretrained_model_name_or_path', None)
        if path is None:
            raise ValueError("tokenizer: key 'pretrained_model_name_or_path' is missing; give the "
                             f'folder or the hub name of a tokenizer. Got {dict(cfg)}')
        return _load(str(path), tuple(sorted(kwargs.items())))
    return _with_special_tokens(cfg)


@lru_cache(maxsize=16)
def _load(path: str, options: tuple):
    from transformers import AutoTokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **dict(options))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f'tokenizer {path!r} could not be loaded ({str(error).splitlines()[0]}). Give a folder '
            'that holds tokenizer.json, or a hub name when a network is available; the ShapesWorld '
            'tokenizer is written by tools/dataset_converters/make_shapes_world.py') from error
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer):
    vocab = tokenizer.get_vocab()
    for group in ((END_OF_TEXT, '<|im_start|>', '<|im_end|>'), VISION_TOKENS, TASK_TOKENS):
        missing = [token for token in group if token not in vocab]
        if missing:
            tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer
