"""Question and answer turns from the ``conversations`` lists of instruction data."""

from __future__ import annotations

from typing import Any

from pixelsail_mm.datasets.templates import clean_question
from pixelsail_mm.errors import BadSampleError


def parse_turns(conversations: Any, file: str, where: str) -> list[dict]:
    """Pair the turns of a conversation, as all readers of the authors' release do.

    Leading ``gpt`` turns are dropped; ``<image>`` is removed from every human turn; consecutive
    human turns are joined without separator and paired with the next gpt turn; both sides are
    stripped. A trailing human turn without answer is dropped.

    Args:
        conversations: List of ``{'from': 'human' | 'gpt', 'value': str}``.
        file: Annotation file, for errors.
        where: Position in it, e.g. ``'[12]'``.

    Returns:
        List of ``dict(human=str, gpt=str)``, at least one.

    Raises:
        BadSampleError: The list is malformed, or no complete turn is left.
    """
    if not isinstance(conversations, list):
        raise BadSampleError(file, f'{where}.conversations', 'must be a list of turns')
    turns, question, complete = [], '', True
    for i, turn in enumerate(conversations):
        speaker, text = (
            (turn.get('from'), turn.get('value')) if isinstance(turn, dict) else (None, None)
        )
        if speaker not in ('human', 'gpt') or not isinstance(text, str):
            raise BadSampleError(
                file,
                f'{where}.conversations[{i}]',
                "needs 'from' ('human' or 'gpt') and a text 'value'",
            )
        if speaker == 'human':
            question += clean_question(text)
        elif question:
            answer = text.strip()
            complete = complete and answer != ''
            turns.append(dict(human=question, gpt=answer))
            question = ''
    if not turns or not complete:
        raise BadSampleError(
            file,
            f'{where}.conversations',
            'has no complete turn of a question and an answer, or an empty answer',
        )
    return turns
