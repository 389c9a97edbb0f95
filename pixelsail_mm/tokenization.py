"""Tokenizer construction and the ids of Pixel-SAIL's special tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from pixelsail_mm.errors import ConfigError, first_line

NUM_PROMPTS = 15
SEG_TOKEN = '[SEG]'
VISION_START, VISION_END, VISION_PATCH = '<vision>', '</vision>', '<vpatch>'
VISION_CLASS, VISION_ROW_END = '<|vis_cls|>', '<vrow_sep>'
END_OF_TEXT = '<|endoftext|>'
CHAT_TOKENS = (END_OF_TEXT, '<|im_start|>', '<|im_end|>')
# Order matters: the rows of a released checkpoint follow it (model facts: "Sequence").
VISION_TOKENS = (
    VISION_START,
    VISION_PATCH,
    VISION_ROW_END,
    '<vframe_sep>',
    VISION_END,
    VISION_CLASS,
)
PROMPT_TOKENS = tuple(f'<Prompt{i}>' for i in range(NUM_PROMPTS))
# How an image is written, and which tokens that takes, see `SpecialTokens.image_ids`.
IMAGE_LAYOUTS = {
    'block': (VISION_START, VISION_PATCH, VISION_END),
    'rows': (VISION_CLASS, VISION_PATCH, VISION_ROW_END),
}
TASK_TOKENS = (SEG_TOKEN, '<p>', '</p>', *PROMPT_TOKENS, '<NO_Prompt>')

#: Label of a token that is not learned; the one that PyTorch's cross entropy leaves out.
IGNORE_INDEX = -100
#: What stands in the place of a prompt's number: on a patch without a prompt, and on other tokens.
NO_PROMPT, NOT_A_PATCH = -2, -1
#: ``<PromptK>`` in a text; the group is K.
PROMPT_PATTERN = re.compile(r'<Prompt(\d+)>')

_ID_RANGE = re.compile(r'[0-9]+(-[0-9]+)?')


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens the model treats specially.

    Attributes:
        seg: ``[SEG]``, whose hidden state becomes a mask query.
        vpatch: Placeholder of one image patch.
        vision_start: ``<vision>``.
        vision_end: ``</vision>``.
        vision_class: ``<|vis_cls|>``.
        vision_row_end: ``<vrow_sep>``.
        prompts: ``<Prompt0>`` ... ``<Prompt14>``.
        eos: ``<|endoftext|>``, which closes every answer.
        pad: Id used to fill batches; never attended to nor trained on.
        vocab_size: Rows the embedding needs, ``len(tokenizer)``.
    """

    seg: int
    vpatch: int
    vision_start: int
    vision_end: int
    vision_class: int
    vision_row_end: int
    prompts: tuple[int, ...]
    eos: int
    pad: int
    vocab_size: int

    @classmethod
    def from_tokenizer(cls, tokenizer) -> SpecialTokens:
        """Look the ids up in ``tokenizer``.

        Raises:
            ConfigError: A token is missing; :func:`build_tokenizer` adds them.
        """
        vocab = tokenizer.get_vocab()
        missing = [t for t in (*VISION_TOKENS, *TASK_TOKENS, END_OF_TEXT) if t not in vocab]
        if missing:
            raise ConfigError(
                f'tokenizer {tokenizer.name_or_path!r} lacks {missing}; '
                'build it with pixelsail_mm.tokenization.build_tokenizer'
            )
        eos = vocab[END_OF_TEXT]
        pad = tokenizer.pad_token_id
        return cls(
            seg=vocab[SEG_TOKEN],
            vpatch=vocab[VISION_PATCH],
            vision_start=vocab[VISION_START],
            vision_end=vocab[VISION_END],
            vision_class=vocab[VISION_CLASS],
            vision_row_end=vocab[VISION_ROW_END],
            prompts=tuple(vocab[t] for t in PROMPT_TOKENS),
            eos=eos,
            pad=eos if pad is None else pad,
            vocab_size=len(tokenizer),
        )

    def image_ids(self, grid: tuple[int, int], layout: str = 'block') -> list[int]:
        """Ids that stand for an image; the first patch is the second of them in both layouts.

        Args:
            grid: Rows and columns of patches; an empty one gives no ids.
            layout: ``'block'``: ``<vision> <vpatch>*(h*w) </vision>``, read with full attention
                inside (single transformer of the authors' release). ``'rows'``:
                ``<|vis_cls|> (<vpatch>*w <vrow_sep>)*h``, read causally like text (EVEv2).

        Raises:
            ConfigError: Unknown ``layout``.
        """
        rows, columns = grid
        if layout not in IMAGE_LAYOUTS:
            raise ConfigError(f'image_layout={layout!r}: use one of {list(IMAGE_LAYOUTS)}')
        if not rows * columns:
            return []
        if layout == 'rows':
            return [self.vision_class, *([self.vpatch] * columns + [self.vision_row_end]) * rows]
        return [self.vision_start, *[self.vpatch] * (rows * columns), self.vision_end]


def new_tokens(tokenizer) -> dict[str, int]:
    """Names and ids of the tokens that a language model may have to learn from nothing.

    They are Pixel-SAIL's own, the three that close and frame turns, and whatever was added behind
    them. The tokenizer alone decides, so a model gets the same set whether it is built from its
    base or from an exported folder; which of them a base knows after all, it decides itself.

    Args:
        tokenizer: One that :func:`build_tokenizer` made.
    """
    vocab = tokenizer.get_vocab()
    own = {token: vocab[token] for token in (*VISION_TOKENS, *TASK_TOKENS)}
    behind = {
        token: index
        for token, index in tokenizer.get_added_vocab().items()
        if index > min(own.values())
    }
    return own | behind | {token: vocab[token] for token in CHAT_TOKENS}


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
            raise ConfigError(
                "tokenizer: key 'pretrained_model_name_or_path' is missing; give the "
                f'folder or the hub name of a tokenizer. Got {dict(cfg)}'
            )
        return _load(str(path), tuple(sorted(kwargs.items())))
    return _with_special_tokens(cfg)


@lru_cache(maxsize=16)
def _load(path: str, options: tuple):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **dict(options))
        # Where there is none, Transformers 5 makes an empty one of the family in config.json.
        files = {'tokenizer.json', *type(tokenizer).vocab_files_names.values()}
        if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in files):
            raise OSError('no tokenizer.json')
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f'tokenizer {path!r} could not be loaded ({first_line(error)}). Give a folder '
            'that holds tokenizer.json, or a hub name when a network is available; the ShapesWorld '
            'tokenizer is written by tools/dataset_converters/make_shapes_world.py'
        ) from error
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer):
    vocab = tokenizer.get_vocab()
    for group in (CHAT_TOKENS, VISION_TOKENS, TASK_TOKENS):
        missing = [token for token in group if token not in vocab]
        if missing:
            tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def write_id_ranges(ids: Iterable[int]) -> str:
    """Write a set of token ids in short, e.g. ``'0-3,7,9-10'``.

    Args:
        ids: Ids >= 0 in any order.
    """
    ranges = []
    for _, run in groupby(enumerate(sorted(set(ids))), lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        ranges.append(f'{members[0]}-{members[-1]}' if len(members) > 1 else f'{members[0]}')
    return ','.join(ranges)


def read_id_ranges(text: str) -> frozenset[int]:
    """Read what :func:`write_id_ranges` wrote.

    Args:
        text: Ids and ranges of ids, both ends included, joined by commas.

    Raises:
        ConfigError: The text has another form.
    """
    parts = text.split(',') if isinstance(text, str) and text else []
    if not isinstance(text, str) or not all(_ID_RANGE.fullmatch(part) for part in parts):
        raise ConfigError(
            f"token ids {str(text):.60}: write ids and ranges such as '0-3,7,9-10', "
            'as tools/model_converters/export_hf.py does'
        )
    ends = [part.partition('-')[::2] for part in parts]
    return frozenset(
        index for first, last in ends for index in range(int(first), int(last or first) + 1)
    )
