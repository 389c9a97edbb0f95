"""Helpers for readers of visual prompts: random prompt ids, region turns, absent prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.tokenization import NUM_PROMPTS, PROMPT_PATTERN, PROMPT_TOKENS

REGION = '<region>'


def draw_prompt_ids(count: int, rng: np.random.Generator | None) -> list[int]:
    """Ids of ``count`` prompts: the first of a random permutation of all ids (authors' release).

    Args:
        count: Number of marked regions, at most :data:`~pixelsail_mm.tokenization.NUM_PROMPTS`.
        rng: Source of randomness; None (test mode) gives 0, 1, 2, ...
    """
    return list(range(count)) if rng is None else rng.permutation(NUM_PROMPTS)[:count].tolist()


def named_prompts(turns: Iterable[Mapping[str, str]]) -> list[int]:
    """Ids of the prompts that turns (``dict(human=, gpt=)``) name, in order and each once."""
    return list(
        dict.fromkeys(
            int(number)
            for turn in turns
            for side in ('human', 'gpt')
            for number in PROMPT_PATTERN.findall(turn[side])
        )
    )


def rename_prompts(turn: Mapping[str, str], names: Mapping[int, int]) -> dict[str, str]:
    """Give the prompts of a turn other ids, all at once so that swapped ids do not collide.

    Args:
        turn: ``dict(human=, gpt=)``; further keys are left out.
        names: Old id to new id of every prompt that the turn names.
    """

    def new_token(match: re.Match) -> str:
        return PROMPT_TOKENS[names[int(match.group(1))]]

    return {side: PROMPT_PATTERN.sub(new_token, turn[side]) for side in ('human', 'gpt')}


class RegionTurns:
    """Turns that describe marked regions, one question per region.

    The rules are the release's: the answer is exactly ``<PromptK>: {description}``; before each
    turn, with probability ``absent_probability`` and at most once per sample, the same kind of
    question is asked about the first id that marks nothing, and answered with exactly
    ``<PromptK> is not in the image.``

    Args:
        questions: Template list (name or strings) with ``<region>``.
        question_suffix: Appended to every question.
        absent_probability: See above; 0 asks about marked regions only.
    """

    def __init__(
        self,
        questions: str | Sequence[str] = 'region_questions',
        question_suffix: str = '',
        absent_probability: float = 0.05,
    ) -> None:
        self.questions = load_templates(questions)
        self.question_suffix = question_suffix
        self.absent_probability = absent_probability
        (self._answer,) = load_templates('region_answers')
        (self._absent,) = load_templates('region_absent_answers')

    def make(
        self,
        descriptions: Sequence[str],
        ids: Sequence[int],
        rng: np.random.Generator,
        question: Callable[[str], str] | None = None,
    ) -> list[dict]:
        """Give the turns.

        Args:
            descriptions: Text of each region.
            ids: Prompt id of each region.
            rng: Source of randomness.
            question: Makes the question from a token, in place of the template list.

        Returns:
            list of ``dict(human=, gpt=)``, one per region and perhaps one about an absent prompt.
        """
        ask = question or (lambda token: self._draw_question(token, rng))
        unused = [k for k in range(NUM_PROMPTS) if k not in set(ids)]
        turns = []
        for description, k in zip(descriptions, ids):
            if unused and rng.random() < self.absent_probability:
                token = PROMPT_TOKENS[unused[0]]
                turns.append(dict(human=ask(token), gpt=self._absent.replace(REGION, token)))
                unused = []
            token = PROMPT_TOKENS[k]
            answer = self._answer.replace(REGION, token).replace('{x}', description)
            turns.append(dict(human=ask(token), gpt=answer))
        return turns

    def _draw_question(self, token: str, rng: np.random.Generator) -> str:
        template = self.questions[rng.integers(len(self.questions))]
        return template.replace(REGION, token) + self.question_suffix


def region_prompts(masks: Sequence[Any], ids: Sequence[int]) -> list[dict]:
    """The ``prompts`` of a canonical record from masks (any spelling) and their ids."""
    return [dict(id=k, mask=mask) for mask, k in zip(masks, ids)]
