"""MultipleChoiceMetric: what counts as naming one option, and the numbers made of it."""

import pytest

from pixelsail_mm.evaluation import MultipleChoiceMetric
from pixelsail_mm.evaluation.metrics.multiple_choice_metric import extract_choice, normalise

COLOURS = ['red', 'a blue square', 'green', 'Vitamin C']


@pytest.mark.parametrize(
    'text, letter',
    [
        ('B', 'B'),
        ('b', 'B'),
        ('B.', 'B'),
        ('(B)', 'B'),
        (' [b]. ', 'B'),
        ('**B**', 'B'),
        ('B. a blue square', 'B'),
        ('(B) a blue square', 'B'),
        ('B: because it is', 'B'),
        ('b) it looks so', 'B'),
        ('B, as the corners show', 'B'),
        ('B a blue square.', 'B'),
        ('The answer is B.', 'B'),
        ('Answer: (c)', 'C'),
        ('I choose option B', 'B'),
        ('The correct choice is "D".', 'D'),
        ('A Blue Square!', 'B'),
        ('green', 'C'),
        ('vitamin c', 'D'),
        ('D. Vitamin C.', 'D'),
        ('<Prompt0>: B', 'B'),
        ('<Prompt12>: green.', 'C'),
        ('<Prompt3> (A) red', 'A'),
        ('It is a blue square.', 'B'),
        ('it is Vitamin C', 'D'),
        ('The answer is green.', 'C'),
        ('The right option is red', 'A'),
    ],
)
def test_extracts(text, letter):
    assert extract_choice(text, COLOURS) == letter


@pytest.mark.parametrize(
    'text',
    [
        '',
        '...',
        'E',
        'F.',
        'purple',
        'A red circle',
        'the answer is not B',
        'B or C',
        'A, B',
        'A and B',
        '(A) red (B) a blue square',
        'A. B.',
        'B. red',
        'Option A: no. The answer is B.',
        'It is a square with red and green',
        'answer is a red thing',
        'The answer is Boat',
        'It is a circle.',
        'It is not red.',
        'It is red or green.',
    ],
)
def test_refuses(text):
    assert extract_choice(text, COLOURS) is None


def test_letters_inside_the_options():
    choices = ['(A) red', '(B) blue']
    assert extract_choice('blue', choices) == 'B'
    assert extract_choice('(B) blue', choices) == 'B'
    assert extract_choice('(B) red', choices) is None


def test_repeated_option_texts_are_ambiguous():
    assert extract_choice('red', ['red', 'Red.', 'blue']) is None
    assert extract_choice('A', ['red', 'Red.', 'blue']) == 'A'


def test_option_text_that_is_another_letter_is_ambiguous():
    assert extract_choice('A', ['B', 'A']) is None
    assert extract_choice('A', ['A', 'B']) == 'A'


def test_normalise():
    assert normalise('<Prompt7>: A  red-ish circle?') == 'a red ish circle'


def question(sample_id, pred, answer, choices=COLOURS, **meta):
    return dict(
        sample_id=sample_id,
        dataset='d',
        task='mcq',
        pred_text=pred,
        answer=answer,
        choices=choices,
        **meta,
    )


def evaluate(samples, **kwargs):
    metric = MultipleChoiceMetric(**kwargs)
    metric.process(None, samples)
    return metric.evaluate(size=len(samples))


def test_hand_worked_accuracy():
    metrics = evaluate(
        [
            question('a', 'B', 'B', question_type='colour'),
            question('b', 'green', 'green', question_type='colour'),
            question('c', 'yes', 'no', choices=['yes', 'no'], question_type='exists'),
            question('d', 'A or B', 'A'),
        ]
    )
    assert metrics == pytest.approx(
        {
            'mcq/accuracy': 2 / 4,
            'mcq/chance': (1 / 4 + 1 / 4 + 1 / 2 + 1 / 4) / 4,
            'mcq/unparsed': 1 / 4,
            'mcq/colour/accuracy': 1,
            'mcq/colour/chance': 1 / 4,
            'mcq/colour/unparsed': 0,
            'mcq/exists/accuracy': 0,
            'mcq/exists/chance': 1 / 2,
            'mcq/exists/unparsed': 0,
        }
    )


def test_protocols_differ_as_documented():
    samples = [question('a', 'C. Both', 'B'), question('b', 'It is red and green', 'red')]
    assert evaluate(samples)['mcq/accuracy'] == 0
    paper = evaluate(samples, protocol='paper')
    assert paper == {'mcq/accuracy': 1.0, 'mcq/chance': 0.25}


def test_chance_is_reached_by_a_constant_answer():
    samples = [question(str(i), 'A', 'ABCD'[i % 4]) for i in range(40)]
    metrics = evaluate(samples)
    assert metrics['mcq/accuracy'] == metrics['mcq/chance'] == 0.25


@pytest.mark.parametrize(
    'fault, message',
    [
        (dict(choices=None), "'a': metainfo 'choices'"),
        (dict(choices=['one']), "'choices'"),
        (dict(answer='purple'), "'purple' is neither"),
        (dict(answer='E'), "'E' is neither"),
        (dict(answer=None), 'None is neither'),
        (dict(pred_text=None), "no 'pred_text'"),
        (dict(choices=['x'] * 27), "'choices'"),
    ],
)
def test_faulty_samples_are_named(fault, message):
    with pytest.raises(ValueError, match=message):
        evaluate([{**question('a', 'B', 'B'), **fault}])


def test_faulty_protocol():
    with pytest.raises(ValueError, match='protocol'):
        MultipleChoiceMetric(protocol='lenient')
