"""Weights that are not for a model are refused, with both sides named."""

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import apply_weights, load_weights, save_weights
from pixelsail_mm.checkpoints.loading.architecture import describe
from pixelsail_mm.errors import CheckpointError
from tests.helpers.checkpoint_cases import tiny_pixel_sail

EMBEDDING, HEAD = 'backbone.llm.model.embed_tokens.weight', 'backbone.llm.lm_head.weight'


def state_of(tied=True, **llm):
    return dict(tiny_pixel_sail(tied, llm=llm).state_dict())


@pytest.mark.parametrize(
    'llm, message',
    [
        (dict(hidden_size=16), 'checkpoint has hidden size 16, .*model has hidden size 32'),
        (dict(num_hidden_layers=3), 'checkpoint has layers 3; the model has layers 2'),
        (dict(num_hidden_layers=1), 'checkpoint has layers 1; the model has layers 2'),
        (dict(intermediate_size=48), 'checkpoint has MLP width 48; the model has MLP width 64'),
        (dict(num_key_value_heads=4), 'checkpoint has key/value width 32; .* width 16'),
        (dict(model_type='llama'), 'checkpoint has family Llama or Mistral; .* family Qwen2'),
        (dict(model_type='qwen3', head_dim=8), 'checkpoint has family Qwen3; .* family Qwen2'),
    ],
)
@pytest.mark.parametrize('required', [None, [], ['']])
def test_another_architecture_is_named(llm, message, required):
    model = tiny_pixel_sail(True, seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f'x: is of another architecture: the {message}'):
        apply_weights(model, state_of(**llm), 'x', required)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_part_can_come_from_another_architecture():
    model = tiny_pixel_sail(True, seed=1)
    source = state_of(num_hidden_layers=3)
    apply_weights(model, source, 'x', required_prefixes=['mask_head.'])
    for key, value in model.mask_head.state_dict(prefix='mask_head.').items():
        assert torch.equal(value, source[key])


def test_architecture_by_the_authors_and_hugging_faces_names():
    shapes = {
        'layers.11.self_attn.o_proj.weight': (32, 64),
        'layers.0.self_attn.q_norm.weight': (8,),
        'layers.0.mlp.gate_proj.weight': (96, 32),
    }
    wanted = {'family': 'Qwen3', 'hidden size': 32, 'layers': 12, 'MLP width': 96}
    for prefix in ('model.', 'single_transformer.model.', 'backbone.llm.model.', ''):
        assert describe({prefix + key: shape for key, shape in shapes.items()}) == wanted
    assert describe({'neck.weight': (3, 3)}) == {}


@pytest.mark.parametrize(
    'gone, message',
    [
        ('mask_head.', r'nothing of mask_head is in it'),
        ('neck.', r'nothing of neck is in it'),
        ('prompt_injector.', 'prompt_injector.proj.weight'),
        ('backbone.llm.model.layers.0.mlp', r'3 weights .*layers.0.mlp.gate_proj.weight'),
        ('backbone.patch_embed.', 'backbone.patch_embed.weight'),
    ],
)
def test_missing_modules_are_named(gone, message):
    state = {key: value for key, value in state_of().items() if not key.startswith(gone)}
    with pytest.raises(CheckpointError, match=message):
        apply_weights(tiny_pixel_sail(True), state, 'x')


def test_head_may_be_left_out_only_where_it_is_tied():
    state = state_of(tied=True)
    state.pop(HEAD)
    assert HEAD in apply_weights(tiny_pixel_sail(True), state, 'x').loaded
    with pytest.raises(CheckpointError, match='lm_head.weight.*tie_word_embeddings=True'):
        apply_weights(tiny_pixel_sail(False), state, 'x')


def test_two_tensors_for_one_tied_weight_are_refused():
    with pytest.raises(CheckpointError, match='differ.*tie_word_embeddings=False'):
        apply_weights(tiny_pixel_sail(True), state_of(tied=False), 'x')
    copied = state_of(tied=True)
    copied[HEAD] = copied[HEAD].clone()  # as the authors write it
    assert not apply_weights(tiny_pixel_sail(True), copied, 'x').missing


@pytest.mark.parametrize(
    'keys, remedy',
    [
        (['mllm.a'], 'no key matches.*official_to_mm'),
        (['model.layers.0.input_layernorm.weight'], 'no key matches.*backbone.llm'),
        (['base_model.model.q_proj.lora_A.weight'], 'LoRA.*merge_lora'),
    ],
)
@pytest.mark.parametrize('required', [None, []])
def test_foreign_files_point_to_their_tool(keys, remedy, required):
    with pytest.raises(CheckpointError, match=remedy):
        apply_weights(tiny_pixel_sail(True), {key: torch.ones(2) for key in keys}, 'x', required)


def test_table_of_a_real_case(tmp_path):
    """A checkpoint of a training with distillation and other tokens, a flat patch embedding."""
    from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata

    source = tiny_pixel_sail(True, new_tokens=('<ship>',))
    state = dict(source.state_dict())
    state['distill.0.proj.weight'] = torch.ones(2, 2)
    state['backbone.patch_embed.weight'] = state['backbone.patch_embed.weight'].view(32, 3, 8, 8)
    save_weights(state, tmp_path / 'm.safetensors', vocabulary_metadata(source.tokenizer))
    table = load_weights(tiny_pixel_sail(True), tmp_path / 'm.safetensors').table()
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert lines['backbone'].split()[1:] == ['28', '0', '0', '1', '2', '0']
    assert lines['distill'].split()[1:] == ['0', '0', '1', '0', '0', '0']
    assert lines['reshaped:'] == (
        'reshaped: backbone.patch_embed.weight (32, 3, 8, 8) -> (32, 192)'
    )
    assert lines['resized:'].startswith(
        f'resized: {EMBEDDING} (285, 32) -> (286, 32): 285 rows copied, 1 new (<harbour>)'
    )
    assert max(map(len, table.splitlines())) < 300
