"""The check of a decoder's family when it is built: what it finds, and what it leaves alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones import attention, family_check, patch_decoder
from pixelsail_mm.models.backbones.attention import AttentionLayout, image_block_attention
from pixelsail_mm.models.backbones.family_check import check_family
from pixelsail_mm.models.backbones.new_tokens import separate_new_rows
from pixelsail_mm.models.backbones.rotary import PatchRotaryEmbedding
from pixelsail_mm.models.backbones.tiny_decoder import tiny_config
from pixelsail_mm.testing.tiny_models import TINY_EVE, TINY_LLM, byte_tokenizer, tiny_model_config

PHI3 = dict(
    rope_scaling=dict(type='longrope', short_factor=[1.1] * 4, long_factor=[3.0] * 4),
    original_max_position_embeddings=20,
    max_position_embeddings=80,
)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Each test checks anew."""
    monkeypatch.setattr(family_check, '_passed', set())


def config_of(family, **extra):
    return AutoConfig.for_model(
        **TINY_LLM | dict(model_type=family, vocab_size=40, pad_token_id=None) | extra
    )


def decoder(family, **extra):
    return AutoModelForCausalLM.from_config(config_of(family, **extra))


def drop(monkeypatch, name, value=None):
    """Let our attention lose an argument, as it did before."""
    ours = attention.image_block_attention

    def forgetful(*args, **kwargs):
        return ours(*args, **kwargs | {name: value})

    from transformers import AttentionInterface

    monkeypatch.setitem(
        AttentionInterface._global_mapping, attention.registered_attention(), forgetful
    )


@pytest.mark.parametrize(
    'family, extra',
    [
        ('gemma2', dict(final_logit_softcapping=9.0, head_dim=8)),
        ('granite', dict(logits_scaling=8)),
        ('cohere', {}),
    ],
)
def test_finds_a_dropped_rule_of_logits(monkeypatch, family, extra):
    config = config_of(family, **extra)
    check_family(config)
    monkeypatch.setattr(family_check, '_passed', set())
    monkeypatch.setattr(family_check, 'vocabulary_logits', lambda llm, states: llm.lm_head(states))
    with pytest.raises(ConfigError, match=f'{family} .*logits of text differ .*by [0-9]'):
        check_family(config)


@pytest.mark.parametrize(
    'family, argument, part',
    [
        ('gemma2', 'softcap', 'logits of text'),
        ('qwen2', 'scaling', None),
        ('granite', 'scaling', 'logits of text'),
        ('qwen2', 'layout', 'an image block'),
        ('mistral', 'sliding_window', 'text beyond its window'),
    ],
)
def test_finds_a_dropped_argument_of_attention(monkeypatch, family, argument, part):
    config = config_of(family)
    check_family(config)
    monkeypatch.setattr(family_check, '_passed', set())
    drop(monkeypatch, argument)
    if part is None:  # its scaling is the one that attention has without
        check_family(config)
        return
    with pytest.raises(ConfigError, match=part):
        check_family(config)


def test_finds_wrong_positions_while_decoding(monkeypatch):
    original = patch_decoder._next_positions
    monkeypatch.setattr(
        patch_decoder, '_next_positions', lambda positions, step: original(positions, step + 1)
    )
    with pytest.raises(ConfigError, match='answers to text differ'):
        check_family(config_of('llama'))


@pytest.mark.parametrize(
    'family, extra',
    [('llama', dict(rope_scaling=dict(rope_type='dynamic', factor=4.0))), ('phi3', PHI3)],
)
def test_finds_frequencies_that_should_have_changed(monkeypatch, family, extra):
    config = config_of(family, **extra)
    check_family(config)
    monkeypatch.setattr(family_check, '_passed', set())
    monkeypatch.setattr('pixelsail_mm.models.backbones.rotary._position_limit', lambda _: None)
    with pytest.raises(ConfigError, match='rotary length'):
        check_family(config)


def test_finds_interleaved_rotation(monkeypatch):
    monkeypatch.setattr('pixelsail_mm.models.backbones.rotary._turns_neighbours', lambda _: False)
    with pytest.raises(ConfigError, match='logits of text'):
        check_family(config_of('cohere'))


def test_finds_padding_that_answers_read(monkeypatch):
    monkeypatch.setattr(AttentionLayout, 'cached_key_mask', lambda layout, num_keys: None)
    with pytest.raises(ConfigError, match='answers to a batch with an image block differ'):
        check_family(config_of('llama'))


def test_finds_causal_images_that_see_later_patches(monkeypatch):
    class AlwaysBlocks(AttentionLayout):
        def __init__(self, spans, length, causal_images=False):
            super().__init__(spans, length)
            if causal_images:  # what the stock model is compared with
                self.spans = AttentionLayout(spans, length, causal_images=True).spans

    monkeypatch.setattr(family_check, 'AttentionLayout', AlwaysBlocks)
    with pytest.raises(ConfigError, match='logits of a batch with causal images differ'):
        check_family(config_of('llama'))


def test_says_where_the_code_of_a_family_fails(monkeypatch):
    monkeypatch.setattr(family_check, 'final_states', lambda *args: [][0])
    with pytest.raises(ConfigError, match=r'text end in an error of its code \(IndexError: list'):
        check_family(config_of('llama'))


@pytest.mark.parametrize(
    'family, reason',
    [
        ('gemma3', r'use its text part .* \(text_config, vision_config\)'),
        (
            'gpt2',
            r'not that of a rotary decoder such as Llama \(no hidden_size, num_hidden_layers, '
            r'num_attention_heads\)',
        ),
    ],
)
def test_builds_nothing_of_a_model_of_another_form(monkeypatch, family, reason):
    """It would be built at its full size: only known names are made small."""
    monkeypatch.setattr(family_check, 'tiny_model', None)
    with pytest.raises(ConfigError, match=f'family {family} does not work here: .*{reason}'):
        check_family(AutoConfig.for_model(family))


def test_refuses_before_weights_are_loaded(tmp_path):
    """The folder has a config only: a family that works gets as far as its missing weights."""
    from pixelsail_mm.registry import MODELS

    for family, error, message in (
        ('minimax', ConfigError, 'minimax does not work here: .*without attention'),
        ('llama', FileNotFoundError, 'could not be loaded'),
    ):
        config_of(family).save_pretrained(tmp_path)
        with pytest.raises(error, match=message):
            MODELS.build(dict(type='SingleTransformer', llm=str(tmp_path)))


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"model_type": "qwen99"}', 'backbone.llm: transformers takes no such config: .*qwen99'),
        (
            '{"model_type": "phi3", "rope_scaling": {"type": "longrope"}}',
            'no such config: .*factor',
        ),
    ],
)
def test_names_a_config_that_transformers_does_not_take(tmp_path, content, message):
    from pixelsail_mm.registry import MODELS

    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ConfigError, match=message):
        MODELS.build(dict(type='SingleTransformer', llm=str(tmp_path)))


def test_leaves_random_state_and_surroundings_alone():
    config = config_of('qwen2')
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_family(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_is_done_once_for_a_kind_of_config(monkeypatch):
    models = []
    original = family_check.tiny_model
    monkeypatch.setattr(
        family_check, 'tiny_model', lambda *args: models.append(original(*args)) or models[-1]
    )
    check_family(config_of('qwen2'))
    assert len(models) == 2
    assert all(
        value.device.type == 'cpu' and value.dtype == torch.float32
        for model in models
        for value in model.parameters()
    )
    check_family(config_of('qwen2', hidden_size=64, num_hidden_layers=4))
    assert len(models) == 2, 'another size, the same features'
    check_family(config_of('qwen2', tie_word_embeddings=False))
    assert len(models) == 4


@pytest.mark.parametrize('surroundings', ['empty weights', 'meta', 'bfloat16', 'no init'])
def test_works_wherever_a_model_is_built(monkeypatch, surroundings):
    from accelerate import init_empty_weights

    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before Transformers 5
        from transformers.modeling_utils import no_init_weights
    config, broken = config_of('qwen2'), config_of('cohere')
    dtype = torch.get_default_dtype()
    context = {
        'empty weights': init_empty_weights,
        'meta': lambda: torch.device('meta'),
        'bfloat16': torch.no_grad,
        'no init': no_init_weights,
    }[surroundings]
    try:
        if surroundings == 'bfloat16':
            torch.set_default_dtype(torch.bfloat16)
        with context():
            check_family(config)
            monkeypatch.setattr(
                family_check, 'vocabulary_logits', lambda llm, states: llm.lm_head(states)
            )
            with pytest.raises(ConfigError, match='logits of text'):
                check_family(broken)
    finally:
        torch.set_default_dtype(dtype)


def test_miniature_keeps_what_is_switched_on():
    config = AutoConfig.for_model(
        'smollm3',
        num_hidden_layers=8,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        no_rope_layers=[1, 1, 1, 0] * 2,
        rope_scaling=dict(
            rope_type='llama3',
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    )
    tiny = tiny_config(config)
    assert (tiny.num_hidden_layers, tiny.no_rope_layers) == (2, [1, 0])
    assert (tiny.num_key_value_heads, tiny.tie_word_embeddings) == (1, True)
    assert (tiny.rope_scaling['rope_type'], tiny.rope_scaling['factor']) == ('llama3', 8.0)
    assert config.rope_scaling['original_max_position_embeddings'] == 8192, 'not changed'


def test_miniature_shares_keys_between_layers():
    config = AutoConfig.for_model('gemma3n_text', num_hidden_layers=10, num_kv_shared_layers=5)
    tiny = tiny_config(config)
    assert tiny.num_kv_shared_layers * 2 == tiny.num_hidden_layers
    assert (
        tiny.layer_types[: tiny.num_kv_shared_layers]
        == tiny.layer_types[tiny.num_kv_shared_layers :]
    )


@pytest.mark.parametrize('family', ['olmo2', 'cohere'])
def test_eve_refuses_what_it_cannot_route(family):
    from pixelsail_mm.registry import MODELS

    cfg = tiny_model_config(byte_tokenizer(), **TINY_EVE)
    cfg['backbone'] = cfg['backbone'] | dict(llm=TINY_LLM | dict(model_type=family))
    with pytest.raises(ConfigError, match='has no (input|post_attention)_layernorm; EVE needs'):
        MODELS.build(cfg)


def test_rows_of_a_scaled_embedding_stay_in_it():
    llm = decoder('gemma3_text', head_dim=8)
    with pytest.raises(ConfigError, match='new_token_rows: Gemma3TextScaledWordEmbedding'):
        separate_new_rows(llm, [3])


def test_padded_rows_do_not_outgrow_a_window():
    """A full window drops keys of its cache, and with them the place where padding ends."""
    query, keys = torch.randn(2, 2, 1, 4), torch.randn(2, 2, 8, 4)
    plain, padded = (AttentionLayout([(start, start, start), (0, 0, 0)], 6) for start in (0, 3))
    image_block_attention(None, query, keys, keys, sliding_window=8, layout=plain)
    image_block_attention(None, query, keys, keys, sliding_window=9, layout=padded)
    with pytest.raises(ConfigError, match='sliding window'):
        image_block_attention(None, query, keys, keys, sliding_window=8, layout=padded)


def test_capped_scores_on_every_path():
    """Prompt, image block, text behind it, independent turns, padding: against a dense softmax."""
    turns = torch.tensor([[0] * 6 + [1, 1, 2, 2]])
    for spans, ids in (
        ([(0, 2, 6)], None),
        ([(2, 2, 2)], None),
        ([(0, 0, 6)], turns),
        ([(0, 2, 6), (3, 4, 7)], None),
    ):
        query, key, value = torch.randn(3, len(spans), 2, 10, 4).unbind(0)
        layout = AttentionLayout(spans, 10, turn_ids=ids)
        ours, _ = image_block_attention(
            None, query, key, value, scaling=2.0, softcap=1.5, layout=layout
        )
        for row, span in enumerate(spans):
            from tests.helpers.attention import dense_mask

            mask = dense_mask(span, 10)
            if ids is not None:
                mask &= (ids[0, :, None] == ids[0]) | (ids[0] == 0)
            scores = 1.5 * torch.tanh(2.0 * query[row] @ key[row].transpose(-1, -2) / 1.5)
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            dense = torch.nan_to_num(weights @ value[row]).transpose(0, 1)
            torch.testing.assert_close(ours[row, span[0] :], dense[span[0] :], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'family, extra, limit',
    [
        ('phi3', PHI3, 20),
        ('llama', {}, None),
        (
            'llama',
            dict(rope_scaling=dict(rope_type='dynamic', factor=2.0), max_position_embeddings=30),
            30,
        ),
    ],
)
def test_positions_beyond_the_trained_length_are_named(family, extra, limit):
    rotary = PatchRotaryEmbedding(decoder(family, **extra).model.rotary_emb)
    rotary(torch.zeros(1), torch.arange((limit or 100) - 1, limit or 100)[None])
    assert rotary.limit == limit
    if limit is not None:
        with pytest.raises(ConfigError, match=f'{limit + 1} positions: .* beyond {limit}'):
            rotary(torch.zeros(1), torch.tensor([[limit]]))
