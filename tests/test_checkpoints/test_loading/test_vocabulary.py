"""Rows of vocabulary tables follow the names of tokens."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.checkpoints.checkpoint import load_state, load_weights, save_weights
from pixelsail_mm.checkpoints.loading.vocabulary import (
    Vocabulary,
    VocabularyError,
    plan_rows,
    stored_vocabulary,
    vocabulary_metadata,
)
from pixelsail_mm.engine.hooks.export_weights_hook import ExportWeightsHook
from pixelsail_mm.errors import CheckpointError
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from pixelsail_mm.tokenization import build_tokenizer
from tests.helpers.checkpoint_cases import NEW_TOKENS, tiny_pixel_sail, tokenizer_with

EMBEDDING, HEAD = 'backbone.llm.model.embed_tokens.weight', 'backbone.llm.lm_head.weight'


def vocabulary(*added, ordinary=3):
    """Three ordinary tokens, then ``added``."""
    return Vocabulary(ordinary + len(added), {t: ordinary + i for i, t in enumerate(added)}, 'x')


def user_tokens_first():
    """A tokenizer in which a user's tokens stand before Pixel-SAIL's: the same names, other ids."""
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=type(byte_tokenizer().backend_tokenizer)(
            byte_tokenizer().backend_tokenizer.model
        )
    )
    plain.add_tokens(list(NEW_TOKENS), special_tokens=True)
    return build_tokenizer(plain)


def by_token(model, key):
    """Token -> row of a table."""
    table = model.state_dict()[key]
    return {token: table[index].clone() for token, index in model.tokenizer.get_vocab().items()}


def test_plan_by_hand():
    stored, own = vocabulary('a', 'b', 'c'), vocabulary('b', 'new', 'a')
    plan = plan_rows(stored, 6, own, 6)
    assert dict(zip(plan.target, plan.source)) == {0: 0, 1: 1, 2: 2, 3: 4, 5: 3}
    assert plan.summary == '5 rows copied, 1 new (new), 2 moved (b, a), 1 cut (c)'


def test_rows_behind_the_tokenizer_are_padding():
    stored = vocabulary('a')
    assert plan_rows(stored, 64, stored, 64) is None
    plan = plan_rows(stored, 64, vocabulary('a', 'b'), 5)
    assert plan.target == [0, 1, 2, 3] and plan.summary == '4 rows copied, 1 new (b)'


@given(st.permutations('abcdef'), st.integers(0, 6), st.permutations('abcdefgh'), st.integers(0, 8))
def test_every_planned_row_has_the_same_token_on_both_sides(theirs, few, ours, many):
    stored, own = vocabulary(*theirs[:few]), vocabulary(*ours[:many])
    plan = plan_rows(stored, stored.size, own, own.size)
    names = [
        {**{i: i for i in range(3)}, **{i: t for t, i in v.added.items()}} for v in (stored, own)
    ]
    if plan is None:
        assert stored.added == own.added
        return
    assert [names[0][row] for row in plan.source] == [names[1][row] for row in plan.target]
    assert len(plan.target) == 3 + len(set(stored.added) & set(own.added))


@pytest.mark.parametrize(
    'stored, own, size, copied',
    [
        (151_936, 151_690, 151_690, 151_690),  # a padded table, cut
        (151_690, 151_936, 151_690, 151_690),  # the model's table is padded
        (151_936, 152_064, 151_690, 151_690),
    ],
)
def test_unknown_tokens_and_padded_tables(stored, own, size, copied):
    plan = plan_rows(None, stored, Vocabulary(size, {}, 'x'), own)
    assert plan.target == plan.source == list(range(copied))


@pytest.mark.parametrize('stored', [284, 287, 256])
def test_unknown_tokens_and_unexplained_rows_are_refused(stored):
    with pytest.raises(VocabularyError, match=f'has {stored} rows .* 286 for 286 tokens'):
        plan_rows(None, stored, Vocabulary(286, {}, 'x'), 286)


def test_another_tokenizer_is_refused():
    with pytest.raises(VocabularyError, match='another tokenizer'):
        plan_rows(Vocabulary(5, {}, 'x'), 5, Vocabulary(5, {}, 'y'), 5)


def test_header_and_tokenizer_file_say_the_same(tmp_path):
    tokenizer = tokenizer_with()
    tokenizer.save_pretrained(tmp_path / 'tokenizer')
    recorded = stored_vocabulary(tmp_path / 'a', vocabulary_metadata(tokenizer))
    assert recorded == stored_vocabulary(tmp_path / 'iter_1.pth', {})
    assert recorded.size == 286 and recorded.added['<harbour>'] == 285
    assert recorded.ordinary == Vocabulary.of_tokenizer(byte_tokenizer()).ordinary
    assert stored_vocabulary(tmp_path.parent / 'elsewhere' / 'a.pth', {}) is None


@pytest.mark.parametrize(
    'entry',
    [
        '{',
        '[1]',
        '{"size": 3}',
        '{"size": "x", "added": {}, "ordinary": "x"}',
        '{"size": 3, "added": ["<p>"], "ordinary": "x"}',
    ],
)
def test_damaged_list_of_tokens_is_named(tmp_path, entry):
    with pytest.raises(CheckpointError, match="a.safetensors: .*entry 'vocabulary'.* is damaged"):
        stored_vocabulary(tmp_path / 'a.safetensors', dict(vocabulary=entry))
    assert stored_vocabulary(tmp_path / 'a.pth', 'a note, as somebody kept it in meta') is None


def test_unreadable_tokenizer_is_named(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{')
    with pytest.raises(CheckpointError, match='tokenizer.json: not a readable tokenizer'):
        stored_vocabulary(tmp_path / 'a.pth', {})


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kind', ['safetensors', 'pth'])
def test_growth_shrinkage_and_other_order(tmp_path, tied, kind):
    """One checkpoint, into models with fewer, more and otherwise ordered tokens."""
    source = tiny_pixel_sail(tied, new_tokens=('<ship>', '<harbour>', '<crane>'))
    if kind == 'safetensors':
        path = tmp_path / 'model.safetensors'
        save_weights(source.state_dict(), path, vocabulary_metadata(source.tokenizer))
    else:  # the tokenizer that training writes beside its checkpoints
        path = tmp_path / 'iter_1.pth'
        torch.save(dict(state_dict=source.state_dict()), path)
        source.tokenizer.save_pretrained(tmp_path / 'tokenizer')
    for tokenizer in (
        tokenizer_with(('<ship>',)),
        user_tokens_first(),
        tokenizer_with(('<buoy>', '<ship>', '<harbour>', '<crane>', '<dock>')),
    ):
        target = tiny_pixel_sail(tied, tokenizer=tokenizer, seed=1)
        before = {key: by_token(target, key) for key in (EMBEDDING, HEAD)}
        report = load_weights(target, path, required_prefixes=[''])
        assert {entry[0] for entry in report.resized} == {EMBEDDING, HEAD}
        for key in (EMBEDDING, HEAD):
            trained = by_token(source, key)
            for token, row in by_token(target, key).items():
                assert torch.equal(row, trained.get(token, before[key][token])), token
        assert (
            target.state_dict()[HEAD].data_ptr() == target.state_dict()[EMBEDDING].data_ptr()
        ) == tied
    assert 'resized: ' in report.table() and '2 new (<buoy>, <dock>)' in report.table()


def test_same_length_and_other_tokens(tmp_path):
    """Equal shapes hide it: a user's tokens took the places of Pixel-SAIL's."""
    source = tiny_pixel_sail(True)
    path = tmp_path / 'model.safetensors'
    save_weights(source.state_dict(), path, vocabulary_metadata(source.tokenizer))
    target = tiny_pixel_sail(True, tokenizer=user_tokens_first(), seed=1)
    assert len(target.tokenizer) == len(source.tokenizer)
    load_weights(target, path)
    trained, loaded = by_token(source, EMBEDDING), by_token(target, EMBEDDING)
    assert target.tokens.seg != source.tokens.seg
    assert all(torch.equal(loaded[token], trained[token]) for token in trained)


def test_unknown_tokens_are_refused_and_the_model_stays(tmp_path):
    path = tmp_path / 'model.safetensors'
    save_weights(tiny_pixel_sail(True, new_tokens=()).state_dict(), path)
    model = tiny_pixel_sail(True, seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match='has 284 rows .*does not say.*tokenizer/'):
        load_weights(model, path, required_prefixes=[])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_padded_table_of_a_base(tmp_path):
    """320 rows for 286 tokens, as tables of released models have them."""
    source = tiny_pixel_sail(False)
    state = dict(source.state_dict())
    for key in (EMBEDDING, HEAD):
        state[key] = torch.cat([state[key], torch.full((34, 32), 7.0)])
    save_weights(state, tmp_path / 'padded.safetensors')
    target = tiny_pixel_sail(False, seed=1)
    report = load_weights(target, tmp_path / 'padded.safetensors')
    assert report.resized[0][1:] == ((320, 32), (286, 32), '286 rows copied, 34 cut as padding')
    assert torch.equal(target.state_dict()[EMBEDDING], source.state_dict()[EMBEDDING])


def test_a_run_records_its_tokens(tmp_path):
    """Beside its checkpoints when it starts, in the exported file when it ends."""
    model = tiny_pixel_sail(True)
    runner = SimpleNamespace(
        model=model,
        work_dir=str(tmp_path),
        iter=3,
        experiment_name='x',
        logger=logging.getLogger(),
        strategy=SimpleNamespace(
            gathered_state_dict=model.state_dict, require_finite_weights=lambda path: None
        ),
    )
    hook = ExportWeightsHook()
    hook.before_train(runner)
    wanted = Vocabulary.of_tokenizer(model.tokenizer)
    assert stored_vocabulary(tmp_path / 'iter_3.pth', {}) == wanted
    hook.after_train(runner)
    metadata = load_state(tmp_path / 'model.safetensors')['meta']
    assert stored_vocabulary(tmp_path.parent / 'moved.safetensors', metadata) == wanted
    assert metadata['iter'] == '3'
