"""Questions for each family of VQA benchmarks.

The strings are the protocol of the authors' release, which follows the one that VLMEvalKit uses for
InternVL; a number is comparable only if it was measured with them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

_SHORT = 'Answer the question using a single word or phrase.'
_CHINESE = re.compile('[\u4e00-\u9fff]')


@dataclass(frozen=True)
class PromptRule:
    """Rule for the questions of some benchmarks.

    Args:
        kind: Kind of benchmark in VLMEvalKit's words: ``'MCQ'``, ``'Y/N'`` or ``'VQA'``.
        names: Patterns of the benchmarks' names in VLMEvalKit, with ``*`` for anything.
        suffix: What follows the question, its options included.
        chinese_suffix: Same for a text with Chinese characters; ``suffix`` by default.
        bare_suffix: ``suffix`` and ``chinese_suffix`` of a question of choice without options.
    """

    kind: str
    names: tuple[str, ...]
    suffix: str
    chinese_suffix: str | None = None
    bare_suffix: tuple[str, str] | None = None


# The first rule that fits is used. MME is among the yes/no benchmarks, whose questions stay as they
# are: the release leaves the hint for a single word out on purpose.
PROMPT_RULES = (
    PromptRule(
        'MCQ',
        ('*',),
        "\nAnswer with the option's letter from the given choices directly.",
        chinese_suffix='\n请直接回答选项字母。',
        bare_suffix=('\nAnswer the question directly.', '\n请直接回答问题。'),
    ),
    PromptRule('Y/N', ('HallusionBench*',), f' Please answer yes or no. {_SHORT}'),
    PromptRule('Y/N', ('*',), ''),
    PromptRule(
        'VQA', ('*MathVista*', '*MathVision*', '*MathVerse*', '*MMVet*', '*MTVQA*', '*VCR*'), ''
    ),
    PromptRule('VQA', ('*LLaVABench*',), '\nAnswer this question in detail.'),
    PromptRule('VQA', ('*',), f'\n{_SHORT}'),
)


def find_rule(kind: str | None, name: str) -> PromptRule | None:
    """The rule of a benchmark.

    Args:
        kind: Its kind, e.g. ``'MCQ'``.
        name: Its name in VLMEvalKit, e.g. ``'MMBench_DEV_EN'``.

    Returns:
        The rule, or None for a kind that has none: the kit's own prompt is used then.
    """
    for rule in PROMPT_RULES:
        if rule.kind == kind and any(fnmatchcase(name, pattern) for pattern in rule.names):
            return rule
    return None


def benchmark_prompt(line: Mapping[str, Any], rule: PromptRule) -> str:
    """The text of one item.

    Args:
        line: The item, a mapping or a row of a pandas table: ``question``, and for questions of
            choice ``hint`` and the options under ``A``, ``B``, ...
        rule: The benchmark's rule.
    """
    text = str(line['question'])
    options = {}
    if rule.kind == 'MCQ':
        if is_given(line.get('hint')):
            text = f'{line["hint"]}\n{text}'
        options = {
            letter: line[letter] for letter in string.ascii_uppercase if is_given(line.get(letter))
        }
        text += ''.join(f'\n{letter}. {option}' for letter, option in options.items())
    suffixes = rule.suffix, rule.chinese_suffix or rule.suffix
    if rule.bare_suffix and not options:
        suffixes = rule.bare_suffix
    return text + suffixes[bool(_CHINESE.search(text))]


def is_given(value: Any) -> bool:
    """Tell whether a cell of a table has a value; empty cells are read as NaN or ``'nan'``."""
    if value is None or (isinstance(value, float) and value != value):
        return False
    return not isinstance(value, str) or (value != '' and value != 'nan')
