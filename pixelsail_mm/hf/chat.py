"""The prompt template as a Jinja chat template, and back from rendered text to turns."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template

from pixelsail_mm.datasets.templates import resolve_prompt_template

_JINJA = files('pixelsail_mm.hf') / 'chat_template.jinja'
# XTuner's templates may number the rounds.
_ROUND = '{round}'


class ChatFormat:
    """Join questions and answers to one text, as ``BuildConversation`` does.

    Args:
        template: See :func:`~pixelsail_mm.datasets.templates.resolve_prompt_template`.
        end: The tokenizer's end token, for templates that name no ``SUFFIX``.
        strip: Strip questions and answers.
    """

    def __init__(self, template: str | Mapping, end: str, strip: bool = True) -> None:
        template = resolve_prompt_template(template)
        self.head, self.tail = template['INSTRUCTION'].split('{input}', 1)
        self.suffix = template['SUFFIX'] or end
        self.separator = template['SEP']
        self.strip = strip

    def jinja(self) -> str:
        """The chat template; there is no text in front of an answer to be generated."""
        return Template(_JINJA.read_text(encoding='utf-8').rstrip()).substitute(
            separator=_literal(self.separator),
            head=_literal(self.head),
            tail=_literal(self.tail),
            suffix=_literal(self.suffix),
            trim=' | trim' if self.strip else '',
        )

    def parse(self, text: str) -> tuple[list[tuple[str, str]], str, str]:
        """Split a text that :meth:`jinja` rendered; anything else is one question.

        Args:
            text: A question, or rendered turns, the last one maybe with the beginning of its
                answer.

        Returns:
            Earlier turns as (question, answer), the last question, the beginning of its answer.

        Raises:
            ValueError: The last answer is finished.
        """
        if not self.tail or not (self.head or self.suffix in text or text.endswith(self.tail)):
            # Without an opening only the end tells a rendered question from a plain one.
            return [], text, ''
        turns: list[tuple[str, str]] = []
        rest, closed = text, True
        while closed:
            if turns and not rest:
                raise ValueError(
                    'the conversation ends with an answer; end it with a question, or '
                    'pass continue_final_message=True to apply_chat_template'
                )
            start, tail = (
                part.format(round=len(turns) + 1, bot_name='assistant')
                for part in ((self.separator if turns else '') + self.head, self.tail)
            )
            question, found, behind = rest.removeprefix(start).partition(tail)
            if not rest.startswith(start) or not found:
                return [], text, ''
            answer, closed, rest = behind.partition(self.suffix)
            if not closed and answer.endswith(tail):
                # A short tail, such as a line break, may stand in the question too.
                question, answer = f'{question}{found}{answer.removesuffix(tail)}', ''
            turns.append((question, answer))
        return turns[:-1], *turns[-1]


def _literal(part: str) -> str:
    """Jinja expression of a template's part."""
    before, number, after = part.partition(_ROUND)
    texts = [repr(piece.format(bot_name='assistant')) for piece in (before, after)]
    return f'{texts[0]} ~ (loop.index0 // 2 + 1) ~ {texts[1]}' if number else texts[0]
