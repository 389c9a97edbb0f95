"""Every rotary decoder of transformers is right here, or refused with the reason."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.attention import AttentionLayout
from pixelsail_mm.registry import MODELS
from tests.helpers.attention import dense_mask

DOCS = Path(__file__).resolve().parents[3] / 'docs' / 'bases.md'
# Version of which the lists below speak.
VERSION = re.search(r'families of transformers (\S+), by', DOCS.read_text())[1]
LISTED = VERSION == transformers.__version__
VOCABULARY = 57
# A family takes of these what it knows.
SIZES = dict(
    hidden_size=96,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=50.0,
    num_local_experts=5,
    num_experts=5,
    n_routed_experts=6,
    moe_num_experts=5,
    num_experts_per_tok=2,
    moe_k=2,
    moe_topk=2,
    n_group=3,
    topk_group=2,
    n_shared_experts=1,
    moe_num_shared_experts=1,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=24,
    first_k_dense_replace=1,
    q_lora_rank=20,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=12,
    expert_ffn_hidden_size=24,
    ffn_hidden_size=72,
    mamba_n_heads=8,
    mamba_d_head=24,
    mamba_d_ssm=192,
    mamba_d_state=8,
    mamba_n_groups=1,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    vocab_size_per_layer_input=VOCABULARY,
    hidden_size_per_layer_input=8,
)
LATENT = dict(num_key_value_heads=6, head_dim=8)
YARN = dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(
    type='longrope',
    short_factor=[1.0 + i / 9 for i in range(8)],
    long_factor=[2.0 + i for i in range(8)],
)
GRANITE = dict(
    logits_scaling=4.0, embedding_multiplier=5.0, residual_multiplier=0.4, attention_multiplier=0.5
)
GEMMA2 = dict(attn_logit_softcapping=1.5, final_logit_softcapping=3.0, query_pre_attn_scalar=9)
# Name of the case -> what it adds to SIZES; the family is what stands before the colon.
WORKS = {
    'apertus': {},
    'arcee': {},
    'aria_text': {},
    'bitnet': {},
    'cohere': dict(use_qk_norm=True),
    'cohere2': dict(sliding_window=40),
    'deepseek_v3': LATENT,
    'dots1': {},
    'ernie4_5': {},
    'ernie4_5_moe': {},
    'exaone4': dict(sliding_window=40, sliding_window_pattern=3),
    'flex_olmo': {},
    'gemma': {},
    'gemma2': GEMMA2 | dict(sliding_window=40),
    'gemma3_text': dict(sliding_window=40, rope_local_base_freq=20.0, sliding_window_pattern=2),
    'glm': {},
    'glm4': {},
    'glm4_moe': {},
    'granite': GRANITE,
    'helium': {},
    'hunyuan_v1_dense': {},
    'hunyuan_v1_moe': {},
    'llama': {},
    'llama:bias': dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    'longcat_flash': LATENT | dict(num_layers=2, zero_expert_num=2, num_hidden_layers=4),
    'llama:linear': dict(rope_scaling=dict(rope_type='linear', factor=4.0)),
    'llama:yarn': dict(rope_scaling=YARN),
    'llama:llama3': dict(
        rope_scaling=dict(
            rope_type='llama3',
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        )
    ),
    'llama:dynamic': dict(rope_scaling=dict(rope_type='dynamic', factor=4.0)),
    'ministral': dict(sliding_window=40),
    'mistral': dict(sliding_window=40),
    'mixtral': {},
    'olmo': dict(clip_qkv=0.7),
    'olmo2': {},
    'persimmon': {},
    'phi': {},
    'phi3': {},
    'phi3:longrope': dict(rope_scaling=LONGROPE, original_max_position_embeddings=48),
    'qwen2': {},
    'qwen2:window': dict(use_sliding_window=True, max_window_layers=1, sliding_window=40),
    'qwen3': {},
    'qwen3_moe': dict(mlp_only_layers=[1]),
    'seed_oss': {},
    'smollm3': dict(no_rope_layers=[1, 0, 1]),
    'starcoder2': {},
    'vaultgemma': GEMMA2,
}
OTHER_ATTENTION = 'no attention but its own'
NO_ROTARY = r'no rotary embedding at model\.rotary_emb'
OTHER_ROTARY = 'its rotary embedding has another form'
# Refused, and what the message says of the reason.
REFUSED = {
    'bamba': (r'without attention \(mamba\)', dict(attn_layer_indices=[1])),
    'dbrx': ('not that of a rotary decoder', {}),
    'deepseek_v2': (OTHER_ROTARY, LATENT),
    'diffllama': (OTHER_ATTENTION, {}),
    'doge': ('logits of text', {}),
    'falcon': (OTHER_ATTENTION, {}),
    'falcon_h1': ('logits of text', {}),
    'gemma3n_text': (
        'logits of text',
        dict(
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            activation_sparsity_pattern=[0.0] * 4,
            layer_types=['sliding_attention', 'full_attention'] * 2,
        ),
    ),
    'gpt_neox': (NO_ROTARY, {}),
    'gpt_neox_japanese': (NO_ROTARY, {}),
    'gpt_oss': (OTHER_ROTARY, {}),
    'gptj': ('not that of a rotary decoder', {}),
    'granitemoe': ('image block', GRANITE),
    'granitemoehybrid': (NO_ROTARY, dict(layer_types=['mamba', 'attention', 'mamba'])),
    'granitemoeshared': ('image block', GRANITE),
    'jetmoe': (OTHER_ATTENTION, {}),
    'lfm2': (r'without attention \(conv\)', dict(layer_types=['conv', 'full_attention', 'conv'])),
    'llama4_text': (OTHER_ROTARY, {}),
    'minimax': (r'without attention \(linear_attention\)', {}),
    'modernbert-decoder': (NO_ROTARY, {}),
    'moshi': ('several parts', {}),
    'nemotron': (OTHER_ATTENTION, {}),
    'olmo3': (NO_ROTARY, {}),
    'olmoe': (OTHER_ATTENTION, {}),
    'phimoe': (OTHER_ATTENTION, {}),
    'qwen2_moe': (OTHER_ATTENTION, {}),
    'qwen3_next': (
        r'without attention \(linear_attention\)',
        dict(layer_types=['linear_attention', 'full_attention'] * 2, num_hidden_layers=4),
    ),
    'recurrent_gemma': (NO_ROTARY, {}),
    'stablelm': (OTHER_ATTENTION, {}),
    'zamba2': (
        NO_ROTARY,
        dict(layers_block_type=['mamba', 'hybrid', 'mamba'], num_mem_blocks=1, mamba_headdim=24),
    ),
}
# Decoders of text and pictures or sound, which are no base: their text part has a name of its own.
NOT_TEXT = {'blt', 'emu3', 'fuyu', 'gemma3', 'gemma3n', 'llama4', 'mllama', 'phi4_multimodal'}


def settings(case, extra):
    family = case.split(':')[0]
    if family not in CONFIG_MAPPING:
        pytest.skip(f'transformers {transformers.__version__} has no family {family}')
    known = AutoConfig.for_model(family).to_dict()
    return (
        {key: size for key, size in SIZES.items() if key in known} | extra | dict(model_type=family)
    )


def build(case, extra):
    torch.manual_seed(3)
    return MODELS.build(
        dict(
            type='SingleTransformer', patch_size=4, vocab_size=VOCABULARY, llm=settings(case, extra)
        )
    ).eval()


@torch.no_grad()
def pair(backbone):
    """The stock decoder beside ours, both with the same random weights, biases and norms."""
    for value in backbone.llm.parameters():
        value.normal_(1.0, 0.3) if value.ndim == 1 else value.uniform_(-0.4, 0.4)
    config = copy.deepcopy(backbone.llm.config)
    stock = AutoModelForCausalLM.from_config(config, attn_implementation='eager')
    stock.load_state_dict(backbone.llm.state_dict())
    return stock.eval()


def dense_logits(stock, ids, span):
    """Stock logits ``(L,V)`` of one row with its image block, cut free of its padding."""
    start, first, end = (place - span[0] for place in span)
    mask = dense_mask((start, first, end), len(ids))
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return stock(ids[None], attention_mask=bias[None, None]).logits[0]


def assert_equal(ours, expected):
    assert expected.std() > 0.05, 'too faint to compare'
    size = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(ours / size, expected / size, atol=1e-4, rtol=0)


@torch.no_grad()
def check_right(backbone):
    """Training and cached answers of a mixed batch, against stock rows one by one."""
    stock, llm = pair(backbone), backbone.llm
    spans, length = [(4, 5, 13), (0, 0, 0), (2, 2, 9)], 18
    ids = torch.randint(0, VOCABULARY, (3, length))
    starts = torch.tensor([span[0] for span in spans])[:, None]
    positions = (torch.arange(length) - starts).clamp(min=0).expand(3, -1, -1)
    layout = AttentionLayout(spans, length)
    embeds = llm.get_input_embeddings()(ids)
    logits = backbone.logits(backbone(embeds, positions, layout))
    new_ids, states = backbone.generate(
        embeds,
        positions,
        layout,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )
    answers = backbone.logits(torch.cat(states, dim=1))
    for row, span in enumerate(spans):
        whole = torch.cat([ids[row], new_ids[row]])[span[0] :]
        expected = dense_logits(stock, whole, span)
        assert_equal(logits[row, span[0] :], expected[: length - span[0]])
        assert_equal(answers[row, span[0] :], expected)
        assert torch.equal(expected[length - span[0] - 1 : -1].argmax(-1), new_ids[row])
    text = torch.randint(0, VOCABULARY, (1, length))
    ours = backbone.logits(
        backbone(
            llm.get_input_embeddings()(text),
            torch.arange(length).expand(3, 1, -1),
            AttentionLayout([(0, 0, 0)], length),
        )
    )
    assert_equal(ours, stock(text).logits)


@pytest.mark.parametrize('case', WORKS)
def test_family_is_right(case):
    if LISTED:
        check_right(build(case, WORKS[case]))
    else:
        check_right_or_refused(case, WORKS[case])


@pytest.mark.parametrize('case', REFUSED)
def test_family_is_refused(case):
    reason, extra = REFUSED[case]
    if LISTED:
        with pytest.raises(ConfigError, match=rf'backbone\.llm: .*{reason}.*docs/bases\.md'):
            build(case, extra)
    else:
        check_right_or_refused(case, extra)


def check_right_or_refused(case, extra):
    """What holds in a version whose families are in no list."""
    try:
        backbone = build(case, extra)
    except ConfigError as error:
        assert str(error).startswith('backbone.llm: ')
        return
    check_right(backbone)


def test_no_family_is_left_out():
    """Every causal decoder whose code speaks of rotary embeddings stands in a list above."""
    if not LISTED:
        pytest.skip(f'the lists are for transformers {VERSION}, here is {transformers.__version__}')
    folder = Path(transformers.__file__).parent / 'models'
    listed = {case.split(':')[0] for case in WORKS} | REFUSED.keys() | NOT_TEXT
    rotary = set()
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        module = CONFIG_MAPPING[name].__module__.split('.')[-2]
        sources = [path.read_text() for path in (folder / module).glob('modeling_*.py')]
        if re.search(r'class \w*RotaryEmbedding\(nn', '\n'.join(sources)):
            rotary.add(name)
    assert len(rotary) > 50
    assert rotary - listed == {'code_llama'}, 'code_llama is llama'
