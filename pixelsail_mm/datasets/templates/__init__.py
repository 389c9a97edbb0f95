"""The text that surrounds a sample: question lists, answer lists and chat templates.

The texts are data (``data/*.json``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

IMAGE_MARKER = '<image>'
_DATA = Path(__file__).parent / 'data'
_MARKER_AND_NEWLINE = re.compile(f'{IMAGE_MARKER}\n|\n{IMAGE_MARKER}|{IMAGE_MARKER}')


@cache
def _read(name: str) -> dict:
    return json.loads((_DATA / f'{name}.json').read_text(encoding='utf-8'))


def templates_version() -> int:
    """Version of the question and answer lists; changes whenever a string does."""
    return _read('questions')['version']


def load_templates(name: str | Sequence[str]) -> list[str]:
    """Give a list of question or answer strings.

    Placeholders: ``{x}`` stands for the phrase or description, ``{segs}`` for the ``[SEG]`` of
    several targets, ``<region>`` for the token ``<PromptK>``. All are to be replaced with
    ``str.replace``, since phrases may hold braces.

    Args:
        name: Key of ``data/questions.json``, or a list of strings that is used instead (so that a
            config can bring its own).

    Returns:
        A new, non-empty list.

    Raises:
        KeyError: No list has this name.
        ValueError: The list is empty or holds something else than text.
    """
    if isinstance(name, str):
        lists = {k: v for k, v in _read('questions').items() if k != 'version'}
        if name not in lists:
            raise KeyError(
                f'template list {name!r} is not in templates/data/questions.json; '
                f'choose from {sorted(lists)} or give a list of strings'
            )
        return list(lists[name])
    strings = list(name)
    if not strings or not all(isinstance(s, str) and s.strip() for s in strings):
        raise ValueError(f'a template list must hold at least one non-empty string, got {strings}')
    return strings


def resolve_prompt_template(template: str | Mapping) -> dict:
    """Give a chat template in XTuner's form.

    Args:
        template: ``'pixel_sail'`` (no system text, no assistant header, answers closed by
            ``<|endoftext|>``: the authors' release), a name of ``xtuner.utils.PROMPT_TEMPLATE``
            such as ``'qwen_chat'``, or a dict with the key ``INSTRUCTION``.

    Returns:
        dict with ``INSTRUCTION`` (contains ``{input}``, and maybe ``{round}``), ``SUFFIX`` (closes
        an answer; empty means the tokenizer's end token), ``SEP`` (between turns, not trained)
        and ``STOP_WORDS``.

    Raises:
        KeyError: Neither we nor XTuner know the name.
        ValueError: ``INSTRUCTION`` is missing or lacks ``{input}``.
    """
    if isinstance(template, str):
        ours = {k: v for k, v in _read('prompt_templates').items() if k != 'version'}
        template = ours[template] if template in ours else _xtuner_template(template, sorted(ours))
    if '{input}' not in template.get('INSTRUCTION', ''):
        raise ValueError(
            f"prompt template: key 'INSTRUCTION' must contain '{{input}}', got {dict(template)}"
        )
    return dict(
        INSTRUCTION=template['INSTRUCTION'],
        SUFFIX=template.get('SUFFIX', ''),
        SEP=template.get('SEP', ''),
        STOP_WORDS=list(template.get('STOP_WORDS', ())),
    )


def _xtuner_template(name: str, ours: list[str]) -> Mapping:
    from pixelsail_mm.compat.xtuner import PROMPT_TEMPLATE

    if name not in PROMPT_TEMPLATE:
        raise KeyError(
            f'prompt template {name!r} is unknown; choose {ours}, a name of '
            'xtuner.utils.PROMPT_TEMPLATE, or give a dict'
        )
    return PROMPT_TEMPLATE[name]


def clean_question(text: str, strip: bool = True) -> str:
    r"""Remove the ``<image>`` marker, with one adjacent newline, from a human turn.

    Args:
        text: Question as a data set or a user spells it, e.g. ``'<image>\nWhat is it?'``.
        strip: Also strip blanks. The release strips in training but not at inference, where its
            prompts keep a leading space; False gives that "paper" behaviour.

    Returns:
        The question without marker.
    """
    if IMAGE_MARKER in text:
        text = _MARKER_AND_NEWLINE.sub('', text)
    return text.strip() if strip else text
