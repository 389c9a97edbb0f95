"""Any Hugging Face decoder as backbone: families, attention, vocabulary, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.models.backbones.attention import AttentionLayout, image_block_attention
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, collate, make_sample
from pixelsail_mm.testing.tiny_models import tiny_model_config as config
from tests.helpers.attention import dense_mask

FAMILIES = ['qwen2', 'qwen3', 'llama', 'mistral']


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


def _family(name, **extra):
    return TINY_LLM | dict(model_type=name) | (dict(head_dim=8) if name == 'qwen3' else {}) | extra


spans = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 8)).map(
    lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[2]) if t[2] else (t[0], t[0], t[0])
)


@given(st.lists(spans, min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_block_attention_equals_dense_mask(rows, text, seed):
    """Any mixture of left padding, image blocks and text-only rows."""
    length = max(end for _, _, end in rows) + text
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(len(rows), heads, length, 4, generator=generator) for heads in (4, 2, 2)
    )
    layout = AttentionLayout(rows, length)
    ours, _ = image_block_attention(None, query, key, value, scaling=0.5, layout=layout)
    mask = torch.stack([dense_mask(span, length) for span in rows])[:, None]
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    weights = (query @ key.transpose(-1, -2) * 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    dense = torch.nan_to_num(weights @ value).transpose(1, 2)
    torch.testing.assert_close(ours, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_families_learn_and_answer(tokenizer, family):
    torch.manual_seed(0)
    model = MODELS.build(config(tokenizer, _family(family)))
    tokens = model.tokens
    data = collate([make_sample(tokens, (2, 3), 2, (4,)), make_sample(tokens, None, seed=1)])
    losses = model(**model.data_preprocessor(data), mode='loss')
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    answers = model.test_step(data)
    assert len(answers) == 2 and all(len(a.pred_token_ids) >= 1 for a in answers)


@pytest.mark.parametrize('tied', [True, False])
def test_embeddings_tied_or_not(tokenizer, tied):
    llm = _family('qwen2', tie_word_embeddings=tied)
    backbone = MODELS.build(config(tokenizer, llm)).backbone
    head, embedding = backbone.llm.lm_head.weight, backbone.llm.get_input_embeddings().weight
    assert (head is embedding) == tied
    assert len(embedding) == len(tokenizer)


def test_columns_matter(tokenizer):
    """Patches of one row differ by their column: the slow half of the frequencies works."""
    from pixelsail_mm.models.data_preprocessor import position_ids

    rotary = MODELS.build(config(tokenizer)).backbone.llm.model.rotary_emb
    positions = position_ids(8, 0, (2, 3))[:, None]
    cos, _ = rotary(torch.zeros(1), positions)
    first_row = cos[0, 1:4]
    half = int(rotary.follows_rows.sum())
    assert torch.equal(first_row[0, :half], first_row[2, :half])
    assert not torch.equal(first_row[0, half:], first_row[2, half:])


def test_inv_freq_survives_bfloat16(tokenizer):
    backbone = MODELS.build(config(tokenizer)).backbone
    before = backbone.llm.model.rotary_emb.inv_freq.clone()
    backbone.bfloat16()
    assert torch.equal(backbone.llm.model.rotary_emb.inv_freq, before)


def test_pretrained_folder_with_another_vocabulary(tokenizer, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings_ = {k: v for k, v in TINY_LLM.items() if k != 'model_type'}
    original = Qwen2ForCausalLM(Qwen2Config(vocab_size=100, **settings_))
    original.save_pretrained(tmp_path)
    backbone = MODELS.build(config(tokenizer, str(tmp_path))).backbone
    embedding = backbone.llm.get_input_embeddings().weight
    assert len(embedding) == len(tokenizer)
    assert torch.equal(embedding[:100], original.get_input_embeddings().weight)
    scale = original.get_input_embeddings().weight.std()
    assert embedding[100:].std() < 3 * scale, 'new rows start near the old ones'


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(llm='/no/such/folder'), FileNotFoundError, '/no/such/folder'),
        (dict(llm=dict(hidden_size=32)), ValueError, 'model_type'),
        (dict(llm=dict(model_type='no_such_family')), ValueError, 'no_such_family'),
        (dict(attn_implementation='flash_attention_2'), ValueError, 'sdpa'),
        (dict(llm=dict(TINY_LLM, model_type='gpt2', n_embd=32)), ValueError, 'rotary'),
    ],
)
def test_bad_settings_are_named(tokenizer, change, error, message):
    settings_ = config(tokenizer)
    settings_['backbone'] |= change
    with pytest.raises((error, AttributeError), match=message):
        MODELS.build(settings_)


def test_sequence_beyond_the_sliding_window(tokenizer):
    model = MODELS.build(config(tokenizer, _family('mistral', sliding_window=8)))
    data = collate([make_sample(model.tokens, (3, 3))])
    with pytest.raises(ValueError, match='sliding window'):
        model(**model.data_preprocessor(data), mode='loss')


def test_gradient_checkpointing_changes_nothing(tokenizer):
    losses = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        settings_ = config(tokenizer)
        settings_['backbone']['gradient_checkpointing'] = checkpointing
        model = MODELS.build(settings_).train()
        data = model.data_preprocessor(collate([make_sample(model.tokens, (2, 2), 1)]))
        total = sum(model(**data, mode='loss').values())
        total.backward()
        losses.append((total.item(), model.backbone.patch_embed.weight.grad.norm().item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_initialisers_of_small_models(tokenizer):
    """They scale random weights; an untied head starts with a uniform guess."""

    def build(**options):
        torch.manual_seed(0)
        cfg = config(
            tokenizer,
            prompt_injector=dict(
                type='VisualPromptInjector', init_gain=options.pop('init_gain', 1.0)
            ),
        )
        cfg['backbone'].update(llm=_family('llama', tie_word_embeddings=False), **options)
        return MODELS.build(cfg)

    plain, loud = build(), build(embedding_std=0.3, patch_embed_gain=4.0, init_gain=5.0)
    loud_std, plain_std = (
        model.backbone.llm.get_input_embeddings().weight.std().item() for model in (loud, plain)
    )
    assert loud_std == pytest.approx(0.3, rel=0.05) and plain_std < 0.1
    assert loud.backbone.llm.lm_head.weight.abs().max() == 0
    for name, gain in (('backbone.patch_embed', 4), ('prompt_injector.proj', 5)):
        ratio = loud.get_submodule(name).weight.std() / plain.get_submodule(name).weight.std()
        assert ratio.item() == pytest.approx(gain, rel=0.2)
