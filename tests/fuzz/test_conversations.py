"""The conversation builder on records with one defect, and on any text."""

import random

import numpy as np
import pytest
from hypothesis import note

from pixelsail_mm.datasets.transforms import BuildConversation
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from pixelsail_mm.tokenization import IGNORE_INDEX
from tests.fuzz.cases import fuzz, outcome
from tests.fuzz.defects import TEXTS, damage

GRID = (2, 3)
SETTINGS = (
    dict(),
    dict(generation=True),
    dict(independent_turns=True),
    dict(strip=False, max_length=60),
    dict(generation=True, max_length=70),
    dict(image_layout='rows', image_in_question=True),
    dict(generation=True, image_in_question=True),
)
WORDS = ('where', 'is', 'the dog', '[SEG]', ' ', 'It is', '<Prompt3>', '\n', '漢', '?', *TEXTS)


@pytest.fixture(scope='module')
def builders():
    tokenizer = byte_tokenizer()
    return [BuildConversation(tokenizer, **settings) for settings in SETTINGS]


def _text(rng):
    return ' '.join(rng.choice(WORDS[:8]) for _ in range(rng.randint(1, 4)))


def _record(rng):
    """A valid record of one to four turns."""
    turns = [
        dict(human=f'{_text(rng)}?'.replace('[SEG]', 'it'), gpt=f'{_text(rng)} [SEG].')
        for _ in range(rng.randint(1, 4))
    ]
    return dict(
        conversation=turns,
        meta=dict(sample_id='s7', expression='the dog'),
        answer_prefix=rng.choice(('', 'It is [SEG].')),
    )


def _damaged(record, rng):
    if rng.random() < 0.3:  # any words in any place
        turn = rng.choice(record['conversation'])
        side = rng.choice(('human', 'gpt'))
        turn[side] = ''.join(rng.choice(WORDS) for _ in range(rng.randint(0, 5)))
        return record, f'{side}: {turn[side]!r:.200}'
    value, path, said = damage(record['conversation'], rng)
    return dict(record, conversation=value), said


def _check(results, record, builder):
    """What holds for every sequence."""
    ids, labels = results['input_ids'], results['labels']
    assert ids.dtype == labels.dtype == np.int64 and ids.shape == labels.shape
    assert len(ids) <= builder.max_length
    assert ((labels == IGNORE_INDEX) | (labels == ids)).all()
    patches = np.count_nonzero(ids == builder.tokens.vpatch)
    assert patches == results['grid'][0] * results['grid'][1]
    if not builder.generation:
        trained = labels[labels != IGNORE_INDEX]
        assert np.count_nonzero(trained == builder.tokens.seg) == len(results['gt_masks'])
        assert builder.count_tokens(dict(record, grid=results['grid'])) == len(ids)


@fuzz
def test_conversations(builders, seed):
    rng = random.Random(seed)
    record, said = _damaged(_record(rng), rng)
    builder = rng.choice(builders)
    note(f'{builder}: {said}')
    turns = record['conversation'] if isinstance(record['conversation'], list) else ()
    answers = [turn.get('gpt') for turn in turns if isinstance(turn, dict)]
    segs = sum(answer.count('[SEG]') for answer in answers if isinstance(answer, str))
    given = dict(record, grid=rng.choice((GRID, (0, 0))), gt_masks=np.zeros((segs, 4, 4), bool))
    result = outcome(lambda: builder(dict(given)), 's7')
    if not isinstance(result, Exception):
        _check(result, record, builder)
