"""Multiple choice questions, scored by the one option the answer commits to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from pixelsail_mm.evaluation.metrics.base import PixelMetric
from pixelsail_mm.evaluation.protocols import check_protocol
from pixelsail_mm.registry import METRICS

_LABEL = re.compile(r'^\s*<Prompt\d+>\s*:?\s*')
_LONE = re.compile(r'^\W*([A-Za-z])\W*$')
# "B.", "B)", "(B)", "b: ..." and, for a capital, a bare "B ..." at the very start.
_HEAD = re.compile(r'^[\s*"\']*(?:[(\[]([A-Za-z])[)\]][.:,]?|([A-Za-z])[.):]|([A-Z]),?(?=\s))')
_STATED = re.compile(
    r'\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(\["\']*([A-Z])(?![\w\'])'
    r'(?=\W*$|[)\]"\'.:,;])',
    re.IGNORECASE,
)
_SENTENCE = re.compile(r'^(?:it is|(?:the )?(?:correct |right )?(?:answer|option|choice) is) ')
# Letters that can only mean an option: "(C)", "C." / "C)" / "C:", "or C".
_MENTION = re.compile(
    r'[(\[]([A-Z])[)\]]|(?<!\w)([A-Z])(?=[.):])|'
    r'(?:\band|\bor|,|/|&)\s*([A-Z])(?!\w)'
)


def normalise(text: str) -> str:
    """Lower case, no label, punctuation as blanks, single blanks: the form texts are compared in.

    Example:
        >>> normalise('<Prompt0>: A Red circle.')
        'a red circle'
    """
    return ' '.join(re.sub(r'[^\w]+|_', ' ', _LABEL.sub('', text).lower()).split())


def extract_choice(text: str, choices: Sequence[str]) -> str | None:
    """Find the one option a free-form answer commits to.

    A leading ``<PromptK>:`` is dropped. An option is named by

    1. the whole text: a letter (``B``, ``b.``, ``(B)``) or an option's text up to case and
       punctuation, which may follow "it is", "the answer is", "the right option is", ...;
    2. a leading letter with a mark (``B. ...``, ``(B) ...``, ``B: ...``), or a bare leading
       capital followed by exactly its option's text (``B a red circle``; so "A red circle" is not
       read as option A);
    3. ``answer is B``, ``option (B)``, ``Answer: B``.

    The answer is ambiguous, hence ``None``, if these disagree, if the text after a leading letter
    is another option's text, or if it mentions another option's letter as one (``B or C``,
    ``(A) ... (B) ...``).

    Args:
        text: The model's answer.
        choices: Texts of the options A, B, ... (at most 26); a letter at their start ("(A) red")
            is ignored if all of them have it.

    Returns:
        A capital letter or ``None``.
    """
    letters = ascii_uppercase[: len(choices)]
    options = dict(zip(letters, _option_texts(choices)))
    text = _LABEL.sub('', text).strip()
    said = normalise(text)
    lone = _LONE.match(text)
    found = {
        letter
        for letter, option in options.items()
        if option and option in (said, _SENTENCE.sub('', said))
    }
    if lone:
        found.add(lone.group(1).upper())
    elif not found:
        found = _from_head(text, options) | {
            match.group(1).upper() for match in _STATED.finditer(text)
        }
        if found and not any(
            said == normalise(f'{letter} {options.get(letter, "")}') for letter in found
        ):
            found |= _mentions(text)
    found = {letter for letter in found if letter in options}
    return found.pop() if len(found) == 1 else None


def _from_head(text: str, options: Mapping[str, str]) -> set[str]:
    """Letters named by rule 2: the leading one, plus the option its text contradicts it with."""
    head = _HEAD.match(text)
    if not head:
        return set()
    letter = next(group for group in head.groups() if group).upper()
    rest = normalise(text[head.end() :])
    if head.group(3) and rest != options.get(letter):
        return {letter} if text[head.end(3)] == ',' else set()
    return {letter} | {other for other, option in options.items() if option and option == rest}


def _mentions(text: str) -> set[str]:
    return {next(group for group in match.groups() if group) for match in _MENTION.finditer(text)}


def _option_texts(choices: Sequence[str]) -> list[str]:
    """Normalised options, without the letters in front if every option has its own."""
    marked = [
        re.match(rf'^\W*{letter}[.):\]]\s*', choice)
        for letter, choice in zip(ascii_uppercase, choices)
    ]
    return [
        normalise(choice[match.end() :] if all(marked) else choice)
        for choice, match in zip(choices, marked)
    ]


@METRICS.register_module()
class MultipleChoiceMetric(PixelMetric):
    """Accuracy of multiple choice questions, in 0..1, beside the level of guessing.

    ========  ====================================================================================
    accuracy  share of questions answered right
    chance    what guessing gives: mean of 1 / number of options
    unparsed  share of answers that name no option, or several (strict protocol)
    ========  ====================================================================================

    Reads ``pred_text`` and, from the metainfo, ``choices`` (option texts) and ``answer`` (the true
    option's letter or its text).

    Args:
        protocol: ``'strict'``: the answer must commit to one option, see :func:`extract_choice`.
            ``'paper'``: the gold string occurs anywhere in the answer, as in the authors' PerBench
            script; lenient (a bare letter occurs in almost any text), only for comparing with
            published numbers.
        group_by: Metainfo key to break results down by, when samples have it.
        **kwargs: See :class:`PixelMetric`.

    Raises:
        ValueError: In :meth:`process`, naming the sample: options are missing, or the true answer
            is none of them.
    """

    default_prefix = 'mcq'

    def __init__(
        self, protocol: str = 'strict', group_by: str | None = 'question_type', **kwargs
    ) -> None:
        super().__init__(group_by=group_by, **kwargs)
        self.protocol = check_protocol(protocol, 'MultipleChoiceMetric')

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the values depend on, for the result file."""
        return dict(protocol=self.protocol)

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return whether the answer is right, the option read from it and the number of options."""
        name = f'MultipleChoiceMetric: sample {sample["sample_id"]!r}'
        choices, answer = sample.get('choices'), sample.get('answer')
        if not choices or not 2 <= len(choices) <= len(ascii_uppercase):
            raise ValueError(
                f"{name}: metainfo 'choices' must list 2 to 26 option texts, got "
                f"{choices!r}; set meta['choices'] in the dataset reader"
            )
        gold = _gold_letter(answer, choices)
        if gold is None:
            raise ValueError(
                f'{name}: the true answer {answer!r} is neither a letter nor the text '
                f'of one of the options {list(choices)}'
            )
        if sample.get('pred_text') is None:
            raise ValueError(f"{name} has no 'pred_text'; the model must run in mode='predict'")
        said = extract_choice(sample['pred_text'], choices)
        right = said == gold if self.protocol == 'strict' else answer in sample['pred_text']
        return dict(right=bool(right), said=said, num_choices=len(choices))

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Average over the records."""
        count = len(records)
        metrics = dict(
            accuracy=sum(record['right'] for record in records) / count,
            chance=sum(1 / record['num_choices'] for record in records) / count,
        )
        if self.protocol == 'strict':
            metrics['unparsed'] = sum(record['said'] is None for record in records) / count
        return metrics


def _gold_letter(answer: Any, choices: Sequence[str]) -> str | None:
    """Letter of the true option; an option text wins over a letter that happens to equal it."""
    if not isinstance(answer, str):
        return None
    texts = _option_texts(choices)
    if texts.count(normalise(answer)) == 1:
        return ascii_uppercase[texts.index(normalise(answer))]
    return extract_choice(answer, choices)
