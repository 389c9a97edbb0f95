"""The small byte-level BPE tokenizer of a ShapesWorld data set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.tokenization import END_OF_TEXT, PROMPT_TOKENS, build_tokenizer
from pixelsail_mm.worlds.shapes_world.expressions import (
    RELATIONS,
    SUPERLATIVES,
    Expression,
    Filter,
    render,
)
from pixelsail_mm.worlds.shapes_world.presets import COLOURS, KINDS, SIZES, TEXTURES
from pixelsail_mm.worlds.shapes_world.questions import (
    ASK_QUESTION,
    ATTRIBUTE_WORDS,
    COUNT_QUESTION,
    DESCRIBE_QUESTIONS,
    DESCRIPTION_STEM,
    EXIST_QUESTION,
    LETTERS,
    MCQ_STEMS,
    MCQ_SUFFIX,
    NEIGHBOUR_STEMS,
    NUMBERS,
    SCENE_QUESTIONS,
    TEXT_ONLY,
    article,
    it_is,
)

VOCAB_SIZE = 700
# Repeats of texts that occur often in training but only once in the grammar.
_FREQUENT = 8
_CHAT_TOKENS = (END_OF_TEXT, '<|im_start|>', '<|im_end|>')


def training_texts() -> Iterator[str]:
    """Text that covers the whole ShapesWorld language, whatever the preset and the seed.

    All presets share one vocabulary, so a model trained on one reads the other.
    """
    phrases = [
        render(Expression(Filter(size=s, texture=t, colour=c, kind=k)))
        for s, t, c, k in product(SIZES, TEXTURES, COLOURS, KINDS)
    ]
    filters = [Filter(colour=c, kind=k) for c, k in product(COLOURS, (*KINDS, None))]
    filters += [Filter(texture=t) for t in TEXTURES]
    plurals = [target.words(plural=True) for target in filters]
    groups = [render(Expression(target, plural=True)) for target in filters]
    yield from phrases
    yield from plurals
    for word, kind in product(SUPERLATIVES, KINDS):
        yield render(Expression(Filter(kind=kind), superlative=word))
    for name, colour in product(RELATIONS, COLOURS):
        yield render(Expression(Filter(), relation=name, anchor=Filter(colour=colour)))
    for question in (*load_templates('segmentation_questions'), EXIST_QUESTION):
        for phrase in (*phrases[::16], *groups[::4]):
            yield question.replace('{x}', phrase)
    yield from (COUNT_QUESTION.replace('{x}', phrase) for phrase in plurals)
    for word in ('user', 'assistant', *load_templates('segmentation_answers')):
        yield from (word,) * _FREQUENT
    yield from _question_texts()


def _question_texts() -> Iterator[str]:
    region = [q.replace('<region>', '{r}') for q in load_templates('region_short_questions')]
    stems = (
        *DESCRIBE_QUESTIONS,
        *region,
        *MCQ_STEMS.values(),
        DESCRIPTION_STEM,
        *NEIGHBOUR_STEMS.values(),
    )
    for _ in range(_FREQUENT):
        for stem in stems:
            options = ' '.join(f'{letter}. {value}' for letter, value in zip(LETTERS, COLOURS))
            yield f'{stem.format(r=PROMPT_TOKENS[0])} {options} {MCQ_SUFFIX}'
        for question, answer in TEXT_ONLY:
            yield question
            yield answer
            yield f'There is {answer}, yes, no.'
        yield from SCENE_QUESTIONS
        yield from LETTERS
        for word in (*COLOURS, *KINDS, *TEXTURES, *SIZES, *NUMBERS, 'yes', 'no'):
            yield word
            yield f' {word}'
            yield f': {article(word)}.'
            yield it_is(word)
        for word in ATTRIBUTE_WORDS.values():
            yield ASK_QUESTION.format(a=word, x='the left shape')


def train_tokenizer(folder: str | Path, vocab_size: int = VOCAB_SIZE):
    """Train the tokenizer and save it as a folder ``AutoTokenizer.from_pretrained`` loads.

    Every word of the language, with its leading space, becomes one token.

    Args:
        folder: Where ``tokenizer.json`` and its configuration go.
        vocab_size: Upper bound on the entries before Pixel-SAIL's special tokens.

    Returns:
        The tokenizer with all special tokens, as :func:`pixelsail_mm.tokenization.build_tokenizer`
        gives it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(_CHAT_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(training_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
    tokenizer = build_tokenizer(tokenizer)
    tokenizer.save_pretrained(str(folder))
    return tokenizer
