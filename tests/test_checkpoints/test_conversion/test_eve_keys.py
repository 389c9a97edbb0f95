"""EVEv2's weights under our names compute what EVEv2 computes.

The published checkpoint is not here: a small decoder with EVEv2's weight names, both branches on
all tokens and an explicit mask stands for it, written from the description of the architecture.
"""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.checkpoints.conversion.eve_keys import eve_to_mm
from pixelsail_mm.checkpoints.conversion.official_keys import EMBEDDING, LM_HEAD, UnknownKeysError
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import (
    TINY_EVE,
    TINY_LLM,
    byte_tokenizer,
    make_sample,
    tiny_model_config,
)
from pixelsail_mm.tokenization import TASK_TOKENS, VISION_TOKENS

WIDTH, HEADS, KV_HEADS, LAYERS, PATCH, ROWS = 32, 4, 2, 2, 8, 256
HEAD = WIDTH // HEADS
TOWER = 'model.vision_tower.'


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


def eve_state(vectors=('start_embedding', 'split_embedding')):
    """Random weights under EVEv2's names; a vocabulary without our tokens."""
    shapes = {
        'model.embed_tokens.weight': (ROWS, WIDTH),
        'lm_head.weight': (ROWS, WIDTH),
        'model.norm.weight': (WIDTH,),
        TOWER + 'patch_embedding.0.weight': (12, 3, PATCH // 2, PATCH // 2),
        TOWER + 'patch_embedding.0.bias': (12,),
        TOWER + 'patch_embedding.2.weight': (WIDTH, 12, 2, 2),
        TOWER + 'patch_embedding.2.bias': (WIDTH,),
    }
    shapes.update({TOWER + name: (WIDTH,) for name in vectors})
    for layer in range(LAYERS):
        for moe in ('', 'moe_'):
            at = f'model.layers.{layer}.'
            for part, rows in (('q', WIDTH), ('k', KV_HEADS * HEAD), ('v', KV_HEADS * HEAD)):
                shapes[f'{at}self_attn.{moe}{part}_proj.weight'] = (rows, WIDTH)
                shapes[f'{at}self_attn.{moe}{part}_proj.bias'] = (rows,)
            shapes[f'{at}self_attn.{moe}o_proj.weight'] = (WIDTH, WIDTH)
            for part in ('gate', 'up'):
                shapes[f'{at}{moe}mlp.{part}_proj.weight'] = (64, WIDTH)
            shapes[f'{at}{moe}mlp.down_proj.weight'] = (WIDTH, 64)
            for part in ('input', 'post_attention'):
                shapes[f'{at}{moe}{part}_layernorm.weight'] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + ('norm' in name)
        for name, shape in shapes.items()
    }


def rms(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def rotate(x, theta=10000.0):
    """Ordinary rotary embedding of ``(heads,L,HEAD)``."""
    half = HEAD // 2
    angles = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ],
        -1,
    )


def eve_logits(state, embeds, visual):
    """Logits ``(L,ROWS)`` of embeddings ``(L,WIDTH)``; ``visual`` ``(L,1)`` is 1 on the image."""

    def both(function, x, layer, path):
        at, _, name = f'model.layers.{layer}.{path}'.rpartition('.')
        return function(x, f'{at}.{name}') * (1 - visual) + function(x, f'{at}.moe_{name}') * visual

    def linear(x, name):
        return F.linear(x, state[f'{name}.weight'], state.get(f'{name}.bias'))

    def mlp(x, name):
        gate = F.silu(linear(x, f'{name}.gate_proj'))
        return linear(gate * linear(x, f'{name}.up_proj'), f'{name}.down_proj')

    def norm(x, name):
        return rms(x, state[f'{name}.weight'])

    for layer in range(LAYERS):
        x = both(norm, embeds, layer, 'input_layernorm')
        q, k, v = (
            both(linear, x, layer, f'self_attn.{part}_proj')
            .unflatten(1, (-1, HEAD))
            .transpose(0, 1)
            for part in 'qkv'
        )
        k, v = (heads.repeat_interleave(HEADS // KV_HEADS, 0) for heads in (rotate(k), v))
        weights = rotate(q) @ k.transpose(1, 2) / HEAD**0.5
        future = torch.ones(len(embeds), len(embeds), dtype=torch.bool).triu(1)
        weights = weights.masked_fill(future, -torch.inf).softmax(-1)
        attended = (weights @ v).transpose(0, 1).flatten(1)
        embeds = embeds + both(linear, attended, layer, 'self_attn.o_proj')
        embeds = embeds + both(
            mlp, both(norm, embeds, layer, 'post_attention_layernorm'), layer, 'mlp'
        )
    return linear(rms(embeds, state['model.norm.weight']), 'lm_head')


def eve_image(state, pixels):
    """Class embedding, then rows of patches that end in the split embedding."""
    tower = {key.removeprefix(TOWER): value for key, value in state.items()}
    first, second = 'patch_embedding.0', 'patch_embedding.2'
    x = F.gelu(
        F.conv2d(pixels, tower[f'{first}.weight'], tower[f'{first}.bias'], stride=PATCH // 2)
    )
    x = F.conv2d(x, tower[f'{second}.weight'], tower[f'{second}.bias'], stride=2)
    split = tower['split_embedding'][:, None, None].expand(-1, x.shape[1], 1)
    return torch.cat([tower['start_embedding'][None], torch.cat([x, split], 2).flatten(1).T])


def build(tokenizer):
    llm = dict(TINY_LLM, tie_word_embeddings=False, rope_theta=10000.0)
    return MODELS.build(
        tiny_model_config(tokenizer, **dict(TINY_EVE, backbone=dict(TINY_EVE['backbone'], llm=llm)))
    ).eval()


def test_logits_are_those_of_both_branches_on_all_tokens(tokenizer):
    state, model = eve_state(), build(tokenizer)
    ours = eve_to_mm(state, tokenizer)
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected and not [key for key in missing if key.startswith('backbone.')]
    inputs, _ = make_sample(model.tokens, (2, 3), image_layout='rows')
    # Text in front of the image, as in a question that holds one; no token unknown to EVE.
    text = torch.tensor([5, 6, 7])
    answer = inputs['input_ids'][9:-1]
    inputs.update(input_ids=torch.cat([text, inputs['input_ids'][:9], answer]))
    inputs['labels'] = torch.full_like(inputs['input_ids'], -100)
    batch = model.data_preprocessor(dict(inputs=[inputs]))['inputs']
    with torch.no_grad():
        logits = model(batch, mode='tensor')['logits'][0]
        mean, std = (getattr(model.data_preprocessor, name)[..., None] for name in ('mean', 'std'))
        image = eve_image(state, ((inputs['image'] - mean) / std)[0])
        table = state['model.embed_tokens.weight']
        visual = torch.zeros(len(logits), 1)
        visual[3:12] = 1
        expected = eve_logits(state, torch.cat([table[text], image, table[answer]]), visual)
    assert expected.std() > 0.1
    known = [i for i in range(ROWS) if i not in new_ids(tokenizer)]
    torch.testing.assert_close(logits[:, known], expected[:, known], atol=1e-5, rtol=1e-4)


def new_ids(tokenizer):
    return tokenizer.convert_tokens_to_ids([*VISION_TOKENS, *TASK_TOKENS])


def test_rows_of_new_tokens(tokenizer):
    state, tokens = eve_state(), build(tokenizer).tokens
    ours = eve_to_mm(state, tokenizer)
    table, head = ours[EMBEDDING], ours[LM_HEAD]
    assert len(table) == len(head) == len(tokenizer)
    assert table[tokens.vpatch].abs().max() == 0
    assert torch.equal(table[tokens.vision_class], state[TOWER + 'start_embedding'])
    assert torch.equal(table[tokens.vision_row_end], state[TOWER + 'split_embedding'])
    prompts = table[list(tokens.prompts)]
    assert 0.5 < prompts.std() / table[:200].std() < 2
    assert len(torch.unique(prompts, dim=0)) == len(prompts)
    assert torch.equal(table[:200], state['model.embed_tokens.weight'][:200])


def test_other_spellings_of_the_vectors_and_stored_frequencies(tokenizer):
    state = eve_state(('class_embedding', 'end_embedding'))
    state['model.layers.0.self_attn.rotary_emb.inv_freq'] = torch.ones(4)
    expected = eve_to_mm(eve_state(), tokenizer)
    assert eve_to_mm(state, tokenizer).keys() == expected.keys()


def test_foreign_weights(tokenizer):
    with pytest.raises(UnknownKeysError, match='model.mask_decoder.weight; .* of EVEv2'):
        eve_to_mm(eve_state() | {'model.mask_decoder.weight': torch.ones(1)}, tokenizer)
    text_only = {key: value for key, value in eve_state().items() if not key.startswith(TOWER)}
    with pytest.raises(ConfigError, match='is this a checkpoint of EVEv2'):
        eve_to_mm(text_only, tokenizer)


@pytest.mark.integration
@pytest.mark.slow
def test_command(run_command, warm_python, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / 'tokenizer')
    save_file(eve_state(), tmp_path / 'eve.safetensors')
    done = run_command(
        warm_python,
        'tools/model_converters/eve_to_mm.py',
        tmp_path / 'eve.safetensors',
        tmp_path / 'ours.safetensors',
        '--tokenizer',
        tmp_path / 'tokenizer',
    )
    assert done.returncode == 0, done.stderr
    loaded = load_state(tmp_path / 'ours.safetensors')
    expected = eve_to_mm(eve_state(), tokenizer)
    assert loaded.get('state_dict', loaded).keys() == expected.keys()
