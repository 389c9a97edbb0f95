"""Turns about marked regions and their random prompt ids."""

import numpy as np
import pytest

from pixelsail_mm.datasets.readers.regions import (
    RegionTurns,
    draw_prompt_ids,
    named_prompts,
    region_prompts,
    rename_prompts,
)


def test_ids_are_distinct_random_and_in_range():
    drawn = [draw_prompt_ids(4, np.random.default_rng(i)) for i in range(40)]
    assert all(len(set(ids)) == 4 and set(ids) <= set(range(15)) for ids in drawn)
    assert {k for ids in drawn for k in ids} == set(range(15))
    assert draw_prompt_ids(15, np.random.default_rng(0)) != list(range(15))


def test_ids_of_test_mode_count():
    assert draw_prompt_ids(3, None) == [0, 1, 2]


def test_answers_name_the_prompt_and_the_description():
    turns = RegionTurns(absent_probability=0).make(
        ['a {x} dog.', 'a cat'], [4, 0], np.random.default_rng(0)
    )
    assert [turn['gpt'] for turn in turns] == ['<Prompt4>: a {x} dog.', '<Prompt0>: a cat']
    assert all(
        turn['human'].count(token) == 1 for turn, token in zip(turns, ('<Prompt4>', '<Prompt0>'))
    )


def test_suffix_and_own_questions():
    turns = RegionTurns(['What is <region>?'], ' In detail.', 0).make(
        ['a dog'], [2], np.random.default_rng(0)
    )
    assert turns == [dict(human='What is <Prompt2>? In detail.', gpt='<Prompt2>: a dog')]
    own = RegionTurns(absent_probability=0).make(
        ['a dog'], [2], np.random.default_rng(0), question='Name {}.'.format
    )
    assert own[0]['human'] == 'Name <Prompt2>.'


def test_one_absent_prompt_at_most_and_before_a_real_turn():
    turns = RegionTurns(absent_probability=1.0).make(
        ['a', 'b', 'c'], [0, 2, 1], np.random.default_rng(0)
    )
    assert [turn['gpt'] for turn in turns] == [
        '<Prompt3> is not in the image.',
        '<Prompt0>: a',
        '<Prompt2>: b',
        '<Prompt1>: c',
    ]
    assert '<Prompt3>' in turns[0]['human']


def test_absent_prompts_come_with_their_probability():
    regions = RegionTurns(absent_probability=0.05)
    count = sum(len(regions.make(['a'], [3], np.random.default_rng(i))) - 1 for i in range(2000))
    assert count == pytest.approx(100, abs=40)  # four standard deviations


def test_nothing_is_absent_when_all_ids_are_used():
    turns = RegionTurns(absent_probability=1.0).make(
        ['a'] * 15, range(15), np.random.default_rng(0)
    )
    assert len(turns) == 15


def test_prompts_pair_masks_with_ids():
    assert region_prompts(['m', 'n'], [7, 3]) == [dict(id=7, mask='m'), dict(id=3, mask='n')]


def test_named_prompts_come_in_order_and_once():
    turns = [
        dict(human='<Prompt12> or <Prompt1>?', gpt='<Prompt3>'),
        dict(human='<Prompt1>?', gpt='<Prompt> <NO_Prompt> Prompt4'),
    ]
    assert named_prompts(turns) == [12, 1, 3]


def test_prompts_are_renamed_all_at_once():
    turn = dict(human='<Prompt1> <Prompt11> <Prompt2>', gpt='<Prompt2>: <Prompt1>', masks=[])
    assert rename_prompts(turn, {1: 2, 2: 1, 11: 14}) == dict(
        human='<Prompt2> <Prompt14> <Prompt1>', gpt='<Prompt1>: <Prompt2>'
    )
