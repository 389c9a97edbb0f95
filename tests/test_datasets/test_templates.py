"""Template lists and chat templates; a changed string must come with a new version."""

import hashlib
import json
from pathlib import Path

import pytest

from pixelsail_mm.datasets import templates
from pixelsail_mm.datasets.templates import (
    clean_question,
    load_templates,
    resolve_prompt_template,
    templates_version,
)

NAMES = [
    'segmentation_questions',
    'segmentation_answers',
    'no_target_answers',
    'region_questions',
    'region_short_questions',
    'region_answers',
    'region_absent_answers',
    'reason_sentence_questions',
    'reason_phrase_questions',
    'muse_answers',
    'muse_group_answers',
    'pix2cap_questions',
    'region_class_questions',
    'gcg_questions',
    'caption_questions',
]


def test_snapshot():
    """Prompts are part of every result. Changed on purpose: raise the version, then this hash."""
    text = json.dumps([load_templates(name) for name in NAMES], ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (templates_version(), digest) == (2, '39619f173acd1138')


def test_strings_that_checkpoints_depend_on():
    assert load_templates('segmentation_answers') == [
        'It is [SEG].',
        'Sure, [SEG].',
        'Sure, it is [SEG].',
        'Sure, the segmentation result is [SEG].',
        '[SEG].',
    ]
    assert load_templates('no_target_answers') == ['No target [SEG].']
    assert load_templates('region_absent_answers') == ['<region> is not in the image.']
    assert load_templates('region_answers') == ['<region>: {x}']
    assert load_templates('region_short_questions') == [
        'Please give me a short description of <region>.'
    ]
    assert 'Please segment {x} in this image.' in load_templates('segmentation_questions')


def test_segmentation_questions_are_eight_wordings_with_and_without_final_mark():
    questions = load_templates('segmentation_questions')
    assert len(set(questions)) == len(questions) == 16
    for full, bare in zip(questions[::2], questions[1::2]):
        assert full[:-1] == bare and full[-1] in '.?' and bare[-1] not in '.?'
        assert full.count('{x}') == 1


def test_region_questions_are_thirty_and_name_the_region_once():
    questions = load_templates('region_questions')
    assert len(set(questions)) == len(questions) == 30
    assert all(q.count('<region>') == 1 for q in questions)


def test_lists_are_copies():
    load_templates('segmentation_answers').clear()
    assert load_templates('segmentation_answers')


def test_a_config_can_bring_its_own_list():
    assert load_templates(('Where is {x}?',)) == ['Where is {x}?']


@pytest.mark.parametrize('bad', [[], [''], ['  '], [3]])
def test_empty_lists_are_rejected(bad):
    with pytest.raises(ValueError, match='non-empty string'):
        load_templates(bad)


def test_unknown_list_names_the_choices():
    with pytest.raises(KeyError, match="'nope'.*segmentation_questions"):
        load_templates('nope')


def test_every_named_list_is_in_the_snapshot():
    data = Path(templates.__file__).parent / 'data' / 'questions.json'
    assert {*json.loads(data.read_text(encoding='utf-8'))} == {'version', *NAMES}


def test_pixel_sail_template():
    assert resolve_prompt_template('pixel_sail') == dict(
        INSTRUCTION='<|im_start|>user\n{input}<|im_end|>\n',
        SUFFIX='<|endoftext|>',
        SEP='',
        STOP_WORDS=['<|im_end|>', '<|endoftext|>'],
    )


def test_dict_template_gets_defaults():
    assert resolve_prompt_template(dict(INSTRUCTION='Q: {input} A:')) == dict(
        INSTRUCTION='Q: {input} A:', SUFFIX='', SEP='', STOP_WORDS=[]
    )


def test_resolved_templates_do_not_share_state():
    resolve_prompt_template('pixel_sail')['STOP_WORDS'].clear()
    assert resolve_prompt_template('pixel_sail')['STOP_WORDS']


def test_template_without_input_is_rejected():
    with pytest.raises(ValueError, match='INSTRUCTION'):
        resolve_prompt_template(dict(INSTRUCTION='no placeholder'))


def test_xtuner_templates_are_accepted():
    assert '<|im_start|>assistant' in resolve_prompt_template('qwen_chat')['INSTRUCTION']
    with pytest.raises(KeyError, match="'nope'.*pixel_sail"):
        resolve_prompt_template('nope')


@pytest.mark.parametrize(
    'text, cleaned',
    [
        ('<image>\nWhat is it?', 'What is it?'),
        ('What is it?\n<image>', 'What is it?'),
        ('a\n<image>\nb', 'a\nb'),
        ('<image>What is it?', 'What is it?'),
        ('<image>\n Please', 'Please'),
        ('two\nlines', 'two\nlines'),
        ('<image>', ''),
    ],
)
def test_clean_question(text, cleaned):
    assert clean_question(text) == cleaned


def test_clean_question_can_keep_blanks():
    assert clean_question('<image>\n Please segment it. ', strip=False) == ' Please segment it. '
