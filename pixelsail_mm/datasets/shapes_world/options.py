"""Text-only turns about lists of options: what a language model knows before it sees images.

Published single transformers start from a trained language model, which finds a word again in its
context and reads what stands beside it. A model that starts from nothing has to learn that first;
without images it takes a minute.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from .expressions import Filter
from .presets import Preset
from .questions import (
    LETTERS,
    article,
    attribute_options,
    description_options,
    format_options,
    shuffled_choices,
)

LIST_QUESTION = 'List these options.'
WHICH_STEM = 'Which option is {r}?'
_LIST_SHARE = 0.5
_ATTRIBUTES = ('colour', 'kind', 'texture')


def list_answer(options: Sequence[tuple[str, str]]) -> str:
    """Answer to :data:`LIST_QUESTION` from (text, letter) pairs."""
    return f'They are {", ".join(f"{text} {letter}" for text, letter in options)}.'


def option_turns(preset: Preset, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Question and answer pairs about options, independent of one another.

    Half of them ask to list the options with their letters, in any order. The others are
    multiple-choice questions about an object that the question describes.

    Args:
        preset: Vocabulary.
        rng: Source of randomness.
        count: Number of turns.
    """
    return [_option_turn(preset, rng) for _ in range(count)]


def _option_turn(preset: Preset, rng: np.random.Generator) -> tuple[str, str]:
    item = _random_description(preset, rng)
    about = str(rng.choice([*_ATTRIBUTES, 'description']))
    found = None if about == 'description' else attribute_options(item, about, preset, rng)
    stem, right, wrong = found or description_options(item, preset, rng)
    if rng.random() < _LIST_SHARE:
        choices = [str(text) for text in rng.permutation([right, *wrong])]
        pairs = list(zip(choices, LETTERS))
        order = rng.permutation(len(pairs))
        return (f'{LIST_QUESTION} {format_options(choices)}',
                list_answer([pairs[i] for i in order]))
    if found and rng.random() < 0.5:
        stem, named = WHICH_STEM, right
    else:
        named = article(item.words())
    choice = shuffled_choices(stem.format(r=named), right, wrong, rng)
    return choice['question'], choice['reply']


def _random_description(preset: Preset, rng: np.random.Generator) -> Filter:
    """An object of a preset, described by all attributes that vary."""
    values = dict(size=tuple(preset.radii), texture=preset.textures, colour=preset.colours,
                  kind=preset.kinds)
    drawn = {name: str(rng.choice(options)) for name, options in values.items()
             if len(options) > 1}
    return Filter(**drawn)
