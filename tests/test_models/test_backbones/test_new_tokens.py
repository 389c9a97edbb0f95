"""Rows of tokens that a base does not know: how they start, which they are, when they train."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pixelsail_mm.engine.hooks import NewTokenHook
from pixelsail_mm.models.backbones.new_tokens import (
    fold_new_rows,
    initialise_rows,
    separate_new_rows,
    untrained_ids,
)
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer
from pixelsail_mm.tokenization import new_tokens
from tests.helpers.checkpoint_cases import tiny_pixel_sail, tokenizer_with

TIED = pytest.mark.parametrize('tied', [True, False], ids=['tied', 'untied'])
BYTES, ROWS = 256, 320


def base_tokenizer(*added):
    """256 bytes and nothing else, but for ``added``: what a language model comes with."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_bytes_only())
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


def _bytes_only():
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return core


def write_base(folder, tied, rows=BYTES, tokenizer=None):
    """A base whose rows have a mean, whose rows behind its vocabulary are nearly zero."""
    settings = TINY_LLM | dict(tie_word_embeddings=tied, vocab_size=rows)
    from transformers import AutoConfig

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(settings.pop('model_type'), **settings)
    )
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.lm_head.weight}:
            table.normal_(mean=0.2, std=0.5)
            table[BYTES:] *= 1e-4
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def tables(backbone):
    return {
        'embedding': backbone.llm.get_input_embeddings().weight.detach(),
        'head': backbone.llm.lm_head.weight.detach(),
    }


def build(folder, tokenizer=None, **settings):
    backbone = dict(type='SingleTransformer', llm=str(folder), patch_size=8, **settings)
    return tiny_pixel_sail(True, tokenizer=tokenizer or byte_tokenizer(), backbone=backbone)


@TIED
@pytest.mark.parametrize('rows', [BYTES, ROWS], ids=['grown', 'padded'])
def test_rows_start_among_the_others(tmp_path, tied, rows):
    original = write_base(tmp_path, tied, rows, base_tokenizer())
    model = build(tmp_path)
    new = sorted(new_tokens(model.tokenizer).values())
    assert model.backbone.untrained_ids == new == list(range(BYTES, len(model.tokenizer)))
    before = {
        'embedding': original.get_input_embeddings().weight.detach(),
        'head': original.lm_head.weight.detach(),
    }
    for name, table in tables(model.backbone).items():
        assert len(table) == len(model.tokenizer)
        old, rest = table[:BYTES], table[new]
        assert torch.equal(old, before[name][:BYTES])
        lengths = rest.norm(dim=1) / old.norm(dim=1).mean()
        assert 0.4 < lengths.min() and lengths.max() < 1.1
        assert (torch.pdist(rest) > 0.25 * torch.pdist(old).mean()).all()
        torch.testing.assert_close(rest.mean(0), old.mean(0), atol=0.2, rtol=0)
    assert (
        torch.equal(
            model.backbone.llm.lm_head.weight, model.backbone.llm.get_input_embeddings().weight
        )
        == tied
    )


@TIED
def test_old_text_is_as_likely_as_before(tmp_path, tied):
    """28 rows more take less than their share of the probability at the start."""
    original = write_base(tmp_path, tied, tokenizer=base_tokenizer()).eval()
    grown = build(tmp_path).backbone.llm
    ids = torch.randint(0, BYTES, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = original.model(ids).last_hidden_state[:, :-1]
        losses = [
            torch.nn.functional.cross_entropy(
                head(states).flatten(0, 1), ids[:, 1:].flatten()
            ).item()
            for head in (original.lm_head, grown.lm_head)
        ]
    share = torch.log(torch.tensor(grown.lm_head.out_features / BYTES)).item()
    assert 0 < losses[1] - losses[0] < share


def test_every_process_draws_the_same(tmp_path):
    write_base(tmp_path, False, tokenizer=base_tokenizer())
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(tables(build(tmp_path).backbone))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_tokens_the_base_knows_keep_their_rows(tmp_path):
    """Like SmolLM2, which has the three chat tokens but none of Pixel-SAIL's."""
    chat = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
    original = write_base(tmp_path, True, ROWS, base_tokenizer(*chat))
    table = original.get_input_embeddings().weight.detach()
    model = build(tmp_path)
    vocabulary = model.tokenizer.get_vocab()
    known = [vocabulary[token] for token in chat]
    assert not set(known) & set(model.backbone.untrained_ids)
    assert vocabulary['[SEG]'] in model.backbone.untrained_ids
    assert torch.equal(tables(model.backbone)['embedding'][known], table[known])


def test_base_that_knows_every_token(tmp_path):
    """A base of our own pre-training: nothing is drawn anew."""
    tokenizer = byte_tokenizer()
    original = write_base(tmp_path, True, len(tokenizer), tokenizer)
    model = build(tmp_path)
    assert model.backbone.untrained_ids == []
    assert torch.equal(tables(model.backbone)['embedding'], original.get_input_embeddings().weight)


def test_padded_base_without_tokenizer(tmp_path, monkeypatch):
    """Its table counts as trained, which is said; rows behind it are new."""
    write_base(tmp_path, True, 270)
    tokens = new_tokens(byte_tokenizer())
    said = []
    monkeypatch.setattr(
        'pixelsail_mm.models.backbones.new_tokens.print_log',
        lambda text, **kwargs: said.append(text),
    )
    ids = untrained_ids(str(tmp_path), tokens, 270, 284)
    assert ids == list(range(270, 284))
    assert 'no tokenizer beside' in said[0] and '<vision>' in said[0] and '<Prompt2>' not in said[0]


def test_new_tokens_of_a_tokenizer():
    tokens = new_tokens(tokenizer_with(['<ship>']))
    assert {'[SEG]', '<vision>', '<Prompt14>', '<p>', '<ship>', '<|im_end|>'} <= set(tokens)
    assert not {'a', ' '} & set(tokens) and len(tokens) == 29


@TIED
@pytest.mark.parametrize('bias', [False, True])
def test_separate_rows_give_the_same_numbers(tied, bias):
    llm = tiny_pixel_sail(tied).backbone.llm
    embedding, head = llm.get_input_embeddings(), llm.lm_head
    if bias:
        head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    initialise_rows(llm, [3, 7])
    ids, states = torch.tensor([[3, 0, 7, 8, 2]]), torch.randn(2, 3, 32)
    expected = embedding(ids), head(states)
    names = set(llm.state_dict())
    separate_new_rows(llm, [7, 3])
    torch.testing.assert_close(llm.get_input_embeddings()(ids), expected[0], atol=0, rtol=0)
    torch.testing.assert_close(llm.lm_head(states), expected[1])
    assert (llm.lm_head.new_rows is llm.get_input_embeddings().new_rows) == tied
    assert set(llm.state_dict()) - names == {'model.embed_tokens.new_rows', 'lm_head.new_rows'}
    with torch.no_grad():
        llm.lm_head.new_rows[0] += 1  # the row of token 3
    changed = llm.get_input_embeddings()(ids), llm.lm_head(states)
    assert (changed[0] != expected[0]).any(-1).tolist() == [[tied, False, False, False, False]]
    moved = (changed[1] - expected[1]).flatten(0, 1).abs().amax(0) > 1e-4
    assert moved.nonzero().flatten().tolist() == [3]
    fold_new_rows(llm)
    assert set(llm.state_dict()) == names
    torch.testing.assert_close(llm.get_input_embeddings()(ids), changed[0], atol=0, rtol=0)
    torch.testing.assert_close(llm.lm_head(states), changed[1])


def warnings_of(model):
    """What the hook says before a training of ``model``."""
    said = []
    logger = SimpleNamespace(warning=said.append)
    NewTokenHook().before_train(SimpleNamespace(model=model, logger=logger))
    return said


LORA = dict(type='LoraConfig', r=2)


@pytest.mark.parametrize(
    ('settings', 'tied', 'places'),
    [
        (dict(), True, []),
        (dict(lora=LORA), True, []),
        (dict(lora=LORA), False, []),
        (dict(lora=LORA, new_token_rows=False), True, ['embedding', 'output head']),
    ],
    ids=['full', 'lora-tied', 'lora-untied', 'lora-without-rows'],
)
def test_warning_before_training(tmp_path, settings, tied, places):
    write_base(tmp_path, tied, tokenizer=base_tokenizer())
    said = warnings_of(build(tmp_path, **settings))
    assert len(said) == len(places)
    for text, place in zip(said, places):
        assert f'the {place} is frozen' in text and '[SEG]' in text and ' more' in text
        assert 'model.backbone.new_token_rows=True' in text


@TIED
def test_warning_whatever_froze_it(tmp_path, tied):
    write_base(tmp_path, tied, tokenizer=base_tokenizer())
    model = build(tmp_path)
    model.backbone.llm.lm_head.requires_grad_(False)
    assert len(warnings_of(model)) == (2 if tied else 1)
    model = build(tmp_path, new_token_rows=True)
    model.backbone.llm.requires_grad_(False)
    assert len(warnings_of(model)) == 2
    model.backbone.llm.get_input_embeddings().new_rows.requires_grad_(True)
    assert len(warnings_of(model)) == (0 if tied else 1)


def test_no_warning_about_tokens_the_base_knows(tmp_path):
    write_base(tmp_path, True, len(byte_tokenizer()), byte_tokenizer())
    model = build(tmp_path)
    model.requires_grad_(False)
    assert warnings_of(model) == []


def test_models_without_backbone_are_left_alone():
    assert warnings_of(torch.nn.Linear(1, 1)) == []
