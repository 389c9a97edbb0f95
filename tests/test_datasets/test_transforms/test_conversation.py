"""BuildConversation: sequence, labels, dropped turns, faults."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets.transforms import BuildConversation
from pixelsail_mm.errors import BadSampleError

GRID = (2, 3)
IMAGE = '<vision>' + '<vpatch>' * 6 + '</vision>'


@pytest.fixture(scope='module')
def tokenizer(parity_dir):
    return str(parity_dir / 'tokenizer')


@pytest.fixture(scope='module')
def build(tokenizer):
    """Build a transform with the fixtures' tokenizer."""
    return lambda **kwargs: BuildConversation(tokenizer, **kwargs)


@pytest.fixture(scope='module')
def default(build):
    return build()


def _record(*turns, n_masks=None, grid=GRID, **more):
    turns = turns or (('where is the dog?', 'It is [SEG].'),)
    if n_masks is None:
        n_masks = sum(answer.count('[SEG]') for _, answer in turns)
    masks = np.zeros((n_masks, 4, 4), bool)
    for i, mask in enumerate(masks):
        mask.flat[i] = True
    return dict(
        conversation=[dict(human=q, gpt=a) for q, a in turns],
        grid=grid,
        gt_masks=masks,
        img_path='a.png',
        meta=dict(sample_id='s7'),
        **more,
    )


def _text(transform, results, labelled=False):
    ids = results['input_ids']
    return transform.tokenizer.decode(ids[results['labels'] >= 0] if labelled else ids)


def test_training_sequence(default):
    results = default(_record(('where is the dog?', 'It is [SEG].'), ('And the cat?', 'Here.')))
    assert _text(default, results) == (
        IMAGE + '<|im_start|>user\nwhere is the dog?<|im_end|>\nIt is [SEG].<|endoftext|>'
        '<|im_start|>user\nAnd the cat?<|im_end|>\nHere.<|endoftext|>'
    )
    assert _text(default, results, True) == 'It is [SEG].<|endoftext|>Here.<|endoftext|>'
    assert results['input_ids'].dtype == results['labels'].dtype == np.int64
    assert results['question'] == 'And the cat?' and results['gt_text'] == 'Here.'
    assert results['dropped_turns'] == 0


def test_text_only(default):
    results = default(_record(('where?', 'there'), grid=(0, 0)))
    assert _text(default, results) == ('<|im_start|>user\nwhere?<|im_end|>\nthere<|endoftext|>')


def test_image_marker_and_blanks_are_removed(default):
    results = default(_record(('<image>\n where? ', '\nthere ')))
    assert _text(default, results).endswith('user\nwhere?<|im_end|>\nthere<|endoftext|>')


text = st.text(
    alphabet=st.characters(codec='utf-8', exclude_characters='<>[]'), min_size=1, max_size=20
).filter(str.strip)


@given(
    st.lists(st.tuples(text, text, st.integers(0, 2)), min_size=1, max_size=4),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_labels_are_the_answers_and_their_ends(default, turns, grid):
    turns = [(question, answer + ' [SEG]' * n) for question, answer, n in turns]
    results = default(_record(*turns, grid=grid))
    ids, labels = results['input_ids'], results['labels']
    assert ids.shape == labels.shape
    trained = labels != -100
    assert np.array_equal(ids[trained], labels[trained])
    assert not trained[: grid[0] * grid[1] + 2].any()
    tokens = default.tokens
    assert (ids == tokens.vpatch).sum() == grid[0] * grid[1]
    assert (labels == tokens.eos).sum() == len(turns)
    assert (labels == tokens.seg).sum() == (ids == tokens.seg).sum() == len(results['gt_masks'])
    expected = [
        i
        for _, answer in turns
        for i in default.tokenizer.encode(answer.strip(), add_special_tokens=False) + [tokens.eos]
    ]
    assert labels[trained].tolist() == expected


TURNS = [
    ('where is the dog?', 'It is [SEG].'),
    ('and the two cats?', '[SEG] and [SEG].'),
    ('and the car?', 'Sure, [SEG].'),
]


def test_too_long_samples_lose_last_turns_with_their_masks(default, build):
    lengths = [len(default(_record(*TURNS[:n]))['input_ids']) for n in (1, 2, 3)]
    for max_length in range(lengths[0], lengths[2] + 1):
        kept = sum(length <= max_length for length in lengths)
        record = _record(*TURNS)
        results = build(max_length=max_length)(dict(record))
        assert len(results['input_ids']) == lengths[kept - 1]
        assert results['dropped_turns'] == 3 - kept
        n_masks = (1, 3, 4)[kept - 1]
        assert np.array_equal(results['gt_masks'], record['gt_masks'][:n_masks])
        assert results['question'] == TURNS[kept - 1][0]
        assert (results['input_ids'] == default.tokens.vpatch).sum() == 6


@pytest.mark.parametrize('generation', [False, True])
def test_the_image_is_never_cut(build, default, generation):
    length = len(build(generation=generation)(_record())['input_ids'])
    with pytest.raises(BadSampleError, match=f'need {length} tokens, max_length is {length - 1}'):
        build(max_length=length - 1, generation=generation)(_record())


def test_generation_stops_after_the_last_question(build):
    transform = build(generation=True)
    results = transform(_record(*TURNS[:2], n_masks=5))
    assert _text(transform, results) == (
        IMAGE + '<|im_start|>user\nwhere is the dog?<|im_end|>\nIt is [SEG].<|endoftext|>'
        '<|im_start|>user\nand the two cats?<|im_end|>\n'
    )
    assert (results['labels'] == -100).all()
    assert len(results['gt_masks']) == 5, 'masks are for metrics only'
    assert results['question'] == 'and the two cats?' and results['gt_text'] == '[SEG] and [SEG].'


def test_generation_needs_no_answer(build):
    record = _record()
    del record['conversation'][0]['gpt'], record['gt_masks']
    assert build(generation=True)(record)['gt_text'] == ''


def test_a_forced_prefix_is_labelled_and_history_is_not(build):
    """The model makes masks of the [SEG] of the answer being written, not of older ones."""
    transform = build(generation=True)
    results = transform(_record(*TURNS[:2], answer_prefix='Sure, [SEG]'))
    assert _text(transform, results).endswith('cats?<|im_end|>\nSure, [SEG]')
    assert _text(transform, results, True) == 'Sure, [SEG]'


def test_too_long_histories_lose_their_oldest_turns(build):
    transform = build(generation=True)
    full = transform(_record(*TURNS))
    shorter = transform(_record(*TURNS[1:]))
    limit = len(full['input_ids']) - 1
    results = build(generation=True, max_length=limit)(_record(*TURNS))
    assert results['input_ids'].tolist() == shorter['input_ids'].tolist()
    assert results['dropped_turns'] == 1 and results['question'] == 'and the car?'


def test_independent_turns_are_numbered(build, default):
    transform = build(independent_turns=True)
    results = transform(_record(*TURNS))
    lengths = [len(default(_record(turn, grid=(0, 0)))['input_ids']) for turn in TURNS]
    assert results['turn_ids'].tolist() == [0] * 8 + [
        n for n, length in enumerate(lengths, 1) for _ in range(length)
    ]
    assert 'turn_ids' not in default(_record())


def test_separator_of_a_template_is_not_trained(build):
    transform = build(
        template=dict(INSTRUCTION='Q{round}: {input} A: ', SUFFIX='<|im_end|>', SEP='\n')
    )
    results = transform(_record(('one', 'two'), ('three', 'four')))
    assert _text(transform, results) == (
        IMAGE + 'Q1: one A: two<|im_end|>\nQ2: three A: four<|im_end|>'
    )
    assert _text(transform, results, True) == 'two<|im_end|>four<|im_end|>'


def test_template_without_suffix_ends_with_the_end_token(build):
    transform = build(template=dict(INSTRUCTION='{input}'))
    assert _text(transform, transform(_record(('one', 'two')))).endswith('onetwo<|endoftext|>')


def test_question_may_hold_braces(default):
    assert 'what is {x}?<|im_end|>' in _text(default, default(_record(('what is {x}?', 'it'))))


@pytest.mark.parametrize(
    'record, reason',
    [
        (_record(n_masks=2), r'sample s7: 1 \[SEG\] in the answers, 2 masks'),
        (_record(('q', 'a'), n_masks=1), r'0 \[SEG\] in the answers, 1 masks'),
        (_record(('q', '[SEG] [SEG]'), n_masks=1), r'2 \[SEG\] in the answers, 1 masks'),
        (_record(('', 'a')), r'conversation\[0\].human: the text is empty'),
        (_record(('<image>\n', 'a')), r'conversation\[0\].human: the text is empty'),
        (_record(('q', 'a'), ('q', ' ')), r'conversation\[1\].gpt: the text is empty'),
        (dict(_record(), conversation=[]), 'there is no turn'),
        (dict(_record(), meta=dict(expression=' ')), 'the expression is empty'),
        (_record(('where is [SEG]?', 'a')), r'must not contain \[SEG\]'),
        (_record(('what is <vpatch>?', 'a')), 'image token <vpatch>'),
        (_record(('q', 'ends here </vision>')), 'image token </vision>'),
        (_record(('what is <Prompt15>?', 'a')), r'prompt id 15 is out of range 0\.\.14'),
        (_record(('q', '<Prompt99>: a dog')), 'prompt id 99'),
        (_record(('what is \ud800?', 'a')), 'half of a character'),
        (_record(('q', 'a \udfff')), 'half of a character'),
        (dict(_record(), conversation=None), 'must be a list'),
        (dict(_record(), conversation=[dict(gpt='a')]), r'conversation\[0\]: must be dict'),
        (dict(_record(), conversation=['q']), r'conversation\[0\]: must be dict'),
        (dict(_record(), conversation=[dict(human='q', gpt=3)]), 'must be dict'),
    ],
)
def test_faults_are_named(default, record, reason):
    with pytest.raises(BadSampleError, match=reason) as error:
        default(dict(record))
    assert error.value.file == 'a.png'


def test_faults_are_found_again_in_cached_text(default):
    for _ in range(2):
        with pytest.raises(BadSampleError, match='prompt id 15'):
            default(_record(('what is <Prompt15>?', 'a')))


def test_prompt_tokens_are_single_ids(default):
    results = default(_record(('what is <Prompt3>?', '<Prompt14>: a dog')))
    for k in (3, 14):
        assert (results['input_ids'] == default.tokens.prompts[k]).sum() == 1


def test_record_is_not_changed(default):
    record = _record(('<image>\n where? ', ' there '))
    conversation = record['conversation']
    default(record)
    assert conversation == [dict(human='<image>\n where? ', gpt=' there ')]


def test_pickling(default):
    copy = pickle.loads(pickle.dumps(default))  # noqa: S301 - bytes made on the same line
    assert np.array_equal(copy(_record())['input_ids'], default(_record())['input_ids'])


def test_a_tokenizer_saved_with_truncation_does_not_cut(parity_dir, tmp_path):
    from transformers import PreTrainedTokenizerFast

    saved = PreTrainedTokenizerFast.from_pretrained(parity_dir / 'tokenizer')
    saved.backend_tokenizer.enable_truncation(4)
    saved.backend_tokenizer.enable_padding(length=64)
    transform = BuildConversation(saved)
    text = _text(transform, transform(_record(('where is the red dog?', 'over there'))))
    assert text.endswith('user\nwhere is the red dog?<|im_end|>\nover there<|endoftext|>')


EVE_IMAGE = '<|vis_cls|>' + ('<vpatch>' * 3 + '<vrow_sep>') * 2


@pytest.fixture(scope='module')
def eve(build):
    """Build a transform with the layout and the template of EVEv2."""
    return lambda **kwargs: build(
        **dict(template='qwen_chat', image_layout='rows', image_in_question=True) | kwargs
    )


def test_rows_of_patches_inside_the_first_question(eve):
    transform = eve()
    results = transform(_record(('where is the dog?', 'It is [SEG].'), ('And the cat?', 'Here.')))
    assert _text(transform, results) == (
        f'<|im_start|>user\n{EVE_IMAGE}\nwhere is the dog?<|im_end|>\n<|im_start|>assistant\n'
        'It is [SEG].<|im_end|>\n<|im_start|>user\nAnd the cat?<|im_end|>\n<|im_start|>assistant\n'
        'Here.<|im_end|>'
    )
    assert _text(transform, results, True) == 'It is [SEG].<|im_end|>Here.<|im_end|>'
    text_only = transform(_record(('where?', 'there'), grid=(0, 0)))
    assert _text(transform, text_only).startswith('<|im_start|>user\nwhere?<|im_end|>')


def test_rows_of_patches_in_front(eve):
    transform = eve(image_in_question=False)
    assert _text(transform, transform(_record())).startswith(f'{EVE_IMAGE}<|im_start|>user\nwhere')


def test_the_image_moves_to_the_first_question_that_is_kept(eve):
    transform = eve(generation=True)
    full, shorter = transform(_record(*TURNS)), transform(_record(*TURNS[1:]))
    limit = len(full['input_ids']) - 1
    transform = eve(generation=True, max_length=limit)
    results = transform(_record(*TURNS))
    assert results['dropped_turns'] == 1
    assert results['input_ids'].tolist() == shorter['input_ids'].tolist()
    assert _text(transform, results).startswith(f'<|im_start|>user\n{EVE_IMAGE}\nand the two cats')


@pytest.mark.parametrize('generation', [False, True])
@pytest.mark.parametrize('grid', [(2, 3), (0, 0)])
def test_image_tokens_count(eve, generation, grid):
    """The limit includes the image, and the lengths that samplers see are true."""
    transform = eve(generation=generation)
    length = len(transform(_record(*TURNS, grid=grid))['input_ids'])
    assert transform.count_tokens(_record(*TURNS, grid=grid)) == length
    assert (
        eve(generation=generation, max_length=length)(_record(*TURNS, grid=grid))['dropped_turns']
        == 0
    )
    assert (
        eve(generation=generation, max_length=length - 1)(_record(*TURNS, grid=grid))[
            'dropped_turns'
        ]
        == 1
    )


def test_tokens_of_the_layout_are_refused_in_text(eve):
    with pytest.raises(BadSampleError, match='image token <vrow_sep>'):
        eve()(_record(('what is <vrow_sep>?', 'a')))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(image_layout='columns'), 'image_layout'),
        (dict(independent_turns=True), 'image_in_question'),
    ],
)
def test_impossible_layouts(eve, settings, message):
    with pytest.raises(ValueError, match=message):
        eve(**settings)


def test_room_for_an_image(build):
    """What the stage accepts at that length, and not at one token less."""
    record = dict(conversation=[dict(human='Where?', gpt='')], answer_prefix='It is', gt_masks=[])
    for options in (dict(), dict(image_layout='rows', image_in_question=True)):
        stage = build(generation=True, max_length=200, **options)
        grid = (4, 5)
        left = stage.image_room(record) - stage.image_length(grid)
        assert 0 < left < 200
        stage.max_length -= left
        assert len(stage.transform(dict(record, grid=grid))['input_ids']) == stage.max_length
        stage.max_length -= 1
        with pytest.raises(BadSampleError, match='max_length'):
            stage.transform(dict(record, grid=grid))
