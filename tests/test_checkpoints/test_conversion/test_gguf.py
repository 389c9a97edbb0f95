"""A language model in a GGUF file becomes a base of ours."""

import os
from pathlib import Path

import pytest
import torch

from pixelsail_mm.checkpoints.conversion.gguf import gguf_to_hf
from pixelsail_mm.command_line import run_command
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config
from pixelsail_mm.tokenization import build_tokenizer

gguf = pytest.importorskip('gguf', reason="the package 'gguf' (extra `bases`) is not installed")

SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
REAL = 'PIXELSAIL_SMOLLM2_GGUF'


def vocabulary():
    """Special tokens, all bytes, one merged pair; the merges."""
    bytes_ = sorted(token for token in byte_tokenizer().get_vocab() if len(token) == 1)
    return [*SPECIAL, *bytes_, 'ab', '12'], ['a b', '1 2']


def tiny_llama(**settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary()[0]),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            **dict(tie_word_embeddings=True) | settings,
        )
    ).eval()


def paired(weight, heads):
    """Rows in llama.cpp's order: the two halves that rotate together side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write(path, model, family='llama', kind='gpt2', pre='smollm', without=(), eos=2, types=None):
    """Write ``model`` as llama.cpp's converter would, in float32, ``without`` some of its parts."""
    tokens, merges = vocabulary()
    config = model.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_name('tiny')
    writer.add_license('apache-2.0')
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(
        config.to_dict().get('rope_theta') or config.rope_parameters['rope_theta']
    )
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL))
    writer.add_token_types([(types or {}).get(token, k) for token, k in zip(tokens, kinds)])
    if 'merges' not in without:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    heads = dict(q_proj=config.num_attention_heads, k_proj=config.num_key_value_heads)
    names = {
        'self_attn.q_proj': 'attn_q',
        'self_attn.k_proj': 'attn_k',
        'self_attn.v_proj': 'attn_v',
        'self_attn.o_proj': 'attn_output',
        'mlp.gate_proj': 'ffn_gate',
        'mlp.up_proj': 'ffn_up',
        'mlp.down_proj': 'ffn_down',
        'input_layernorm': 'attn_norm',
        'post_attention_layernorm': 'ffn_norm',
    }
    for key, value in model.model.state_dict().items():
        part = key.removesuffix('.weight')
        if part.startswith('layers.'):
            _, number, inner = part.split('.', 2)
            if inner.split('.')[-1] in heads:
                value = paired(value, heads[inner.split('.')[-1]])
            part = f'blk.{number}.{names[inner]}'
        else:
            part = dict(embed_tokens='token_embd', norm='output_norm')[part]
        if part not in without:
            writer.add_tensor(f'{part}.weight', value.contiguous().numpy())
    if not config.tie_word_embeddings:
        writer.add_tensor('output.weight', model.lm_head.weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """The tiny model, and the folder that its file was converted to."""
    folder = tmp_path_factory.mktemp('gguf')
    model = tiny_llama()
    facts = gguf_to_hf(write(folder / 'tiny.gguf', model), folder / 'out' / 'base')
    return model, folder / 'out' / 'base', facts


def test_logits_are_those_of_the_file(converted):
    from transformers import AutoModelForCausalLM

    model, folder, facts = converted
    ids = torch.arange(20)[None]
    read = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-5)
    assert facts['parameters'] == sum(p.numel() for p in model.parameters())
    assert (facts['name'], facts['licence']) == ('tiny', 'apache-2.0')


def test_tokenizer_is_that_of_the_file(converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer('<|im_start|>ab12 é<|im_end|>').input_ids)
    # Nothing is put in front, digits stand alone although a merge of them is listed.
    assert tokens == ['<|im_start|>', 'ab', '1', '2', 'Ġ', 'Ã', '©', '<|im_end|>']
    assert tokenizer.decode(tokenizer('ab12 é').input_ids) == 'ab12 é'
    assert tokenizer.eos_token == '<|im_end|>' and tokenizer.bos_token == '<|im_start|>'


def test_a_head_of_its_own_stays_one(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_llama(tie_word_embeddings=False)
    gguf_to_hf(write(tmp_path / 'untied.gguf', model), tmp_path / 'base')
    read = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    assert torch.equal(read.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(read.lm_head.weight, read.model.embed_tokens.weight)


def test_tokens_that_users_defined_are_whole_and_shown(tmp_path):
    """Such as Qwen's ``<tool_call>``: unlike control tokens they are part of what a reader sees."""
    gguf_to_hf(write(tmp_path / 'x.gguf', tiny_llama(), types={'12': 4}), tmp_path / 'base')
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'base')
    ids = tokenizer('<|im_start|>a12').input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ['<|im_start|>', 'a', '12']
    assert tokenizer.decode(ids, skip_special_tokens=True) == 'a12'


def test_is_a_base_of_ours(converted):
    """New tokens go behind the old ones, whose rows stay."""
    model, folder, _ = converted
    tokenizer = build_tokenizer(str(folder))
    ours = MODELS.build(tiny_model_config(str(folder), llm=str(folder)))
    rows = ours.backbone.llm.get_input_embeddings().weight
    old = model.get_input_embeddings().weight
    assert len(rows) == len(tokenizer) > len(old)
    assert torch.equal(rows[: len(old)], old)


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda data: b'PK' + data[2:], 'not a GGUF file'),
        (lambda data: data[: len(data) // 8], 'get it again'),
    ],
)
def test_damaged_files_are_refused(converted, tmp_path, damage, message):
    source = converted[1].parents[1] / 'tiny.gguf'
    broken = tmp_path / 'broken.gguf'
    broken.write_bytes(damage(source.read_bytes()))
    with pytest.raises(CheckpointError, match=f'broken.gguf.*{message}'):
        gguf_to_hf(broken, tmp_path / 'base')
    assert not (tmp_path / 'base').exists()


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(kind='llama'), 'of the kind .llama.'),
        (dict(pre='martian'), 'in the way .martian.'),
        (dict(without=['merges']), 'its tokenizer has no merges'),
        (dict(eos=9999), 'its eos token has the id 9999'),
        # transformers draws missing weights at random and goes on.
        (
            dict(without=['blk.1.ffn_up', 'output_norm']),
            r'lacks 2 weights of llama \(model.layers.1',
        ),
    ],
    ids=['kind', 'splitting', 'merges', 'end', 'a part of the model'],
)
def test_what_cannot_be_read_whole_is_refused(tmp_path, wrong, message):
    path = write(tmp_path / 'other.gguf', tiny_llama(), **wrong)
    with pytest.raises(CheckpointError, match=message):
        gguf_to_hf(path, tmp_path / 'base')
    assert not (tmp_path / 'base').exists()


@pytest.mark.parametrize(
    ('family', 'message'),
    [
        ('bert', 'architecture bert is not supported'),
        ('gemma2', 'weights cannot be read'),
        ('mamba', 'lacks 18 weights of mamba'),
    ],
)
def test_another_architecture_than_the_weights_have_is_refused(tmp_path, family, message):
    path = write(tmp_path / 'other.gguf', tiny_llama(), family)
    with pytest.raises(CheckpointError, match=message):
        gguf_to_hf(path, tmp_path / 'base')


def test_other_things_in_the_folder_are_kept(converted, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ConfigError, match='notes.txt in it would be lost'):
        gguf_to_hf(converted[1].parents[1] / 'tiny.gguf', tmp_path)
    assert (tmp_path / 'notes.txt').is_file()


def test_user_errors_are_messages(tmp_path, capsys):
    (tmp_path / 'text.gguf').write_text('no model')
    for name in ('none.gguf', 'text.gguf'):
        assert run_command(lambda name=name: gguf_to_hf(tmp_path / name, tmp_path / 'base')) == 2
        assert name in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get(REAL),
    reason=f'{REAL} does not name the GGUF file of '
    'SmolLM2-135M (python tools/misc/download.py smollm2_135m)',
)
def test_the_real_model_knows_its_capitals(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = gguf_to_hf(Path(os.environ[REAL]), tmp_path / 'base')
    assert facts['parameters'] == 134_515_008 and facts['vocabulary'] == 49_152
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'base')
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    prompt = tokenizer('The capital of France is', return_tensors='pt')
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0]) == 'The capital of France is Paris'
