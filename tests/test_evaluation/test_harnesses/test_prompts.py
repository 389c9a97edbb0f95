"""The strings of the protocol, per family of benchmarks."""

import numpy as np
import pytest

from pixelsail_mm.evaluation.harnesses.prompts import (
    PROMPT_RULES,
    benchmark_prompt,
    find_rule,
    is_given,
)

LETTER = "\nAnswer with the option's letter from the given choices directly."
SHORT = 'Answer the question using a single word or phrase.'


def put(kind, name, **line):
    return benchmark_prompt(line, find_rule(kind, name))


@pytest.mark.parametrize(
    'kind, name, suffix',
    [
        ('Y/N', 'MME', ''),
        ('Y/N', 'POPE', ''),
        ('Y/N', 'HallusionBench', f' Please answer yes or no. {SHORT}'),
        ('VQA', 'LLaVABench', '\nAnswer this question in detail.'),
        ('VQA', 'MathVista_MINI', ''),
        ('VQA', 'MMVet', ''),
        ('VQA', 'TextVQA_VAL', f'\n{SHORT}'),
        ('VQA', 'OCRBench', f'\n{SHORT}'),
    ],
)
def test_open_questions(kind, name, suffix):
    question = 'Is there a dog? Please answer yes or no.'
    assert put(kind, name, question=question, A='cat', hint='none') == question + suffix


@pytest.mark.parametrize('name', ['MMBench_DEV_EN', 'SEEDBench_IMG', 'MMStar'])
def test_choice(name):
    assert put('MCQ', name, question='Which one?', A='a cat', B='a dog', C=3) == (
        f'Which one?\nA. a cat\nB. a dog\nC. 3{LETTER}'
    )


@pytest.mark.parametrize('empty', [None, float('nan'), np.float64('nan'), 'nan', ''])
def test_hint_and_options_may_be_empty_cells(empty):
    assert put('MCQ', 'X', question='Q', hint='Look.', A='a', B='b', C=empty) == (
        f'Look.\nQ\nA. a\nB. b{LETTER}'
    )
    assert put('MCQ', 'X', question='Q', hint=empty, A='a') == f'Q\nA. a{LETTER}'
    assert not is_given(empty)


def test_falsy_options_stay():
    assert put('MCQ', 'X', question='How many?', A=0, B=1) == f'How many?\nA. 0\nB. 1{LETTER}'


def test_chinese_and_missing_options():
    assert put('MCQ', 'X', question='哪一个?', A='a') == '哪一个?\nA. a\n请直接回答选项字母。'
    assert put('MCQ', 'X', question='Which?', A='猫').endswith('请直接回答选项字母。')
    assert put('MCQ', 'X', question='What?') == 'What?\nAnswer the question directly.'
    assert put('MCQ', 'X', question='什么?') == '什么?\n请直接回答问题。'
    assert put('VQA', 'X', question='什么?') == f'什么?\n{SHORT}'


def test_a_row_of_a_pandas_table():
    table = pytest.importorskip('pandas').DataFrame(
        [dict(question='Q', hint=float('nan'), A='a', B=float('nan'))]
    )
    assert benchmark_prompt(table.iloc[0], find_rule('MCQ', 'X')) == f'Q\nA. a{LETTER}'


def test_kinds_without_a_rule_are_left_to_the_kit():
    assert find_rule('MT', 'MMDU') is None and find_rule(None, 'X') is None
    assert {rule.kind for rule in PROMPT_RULES} == {'MCQ', 'Y/N', 'VQA'}
