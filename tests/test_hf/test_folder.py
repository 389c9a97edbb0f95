"""Folders that are not ours, damaged, or hostile; checkpoints that cannot be exported."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

import pixelsail_mm.hf  # noqa: F401  (registers the Auto classes)
from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.checkpoints.checkpoint import load_state, save_weights
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.hf.export import export_hf
from pixelsail_mm.testing.tiny_models import TINY_LLM
from tests.helpers.checkpoint_cases import NEW_TOKENS, tokenizer_with

EXPORTED = {
    'config.json',
    'generation_config.json',
    'model.safetensors',
    'tokenizer.json',
    'tokenizer_config.json',
    'chat_template.jinja',
    'preprocessor_config.json',
    'processor_config.json',
    'README.md',
}
OLDER = {'special_tokens_map.json'}  # written by Transformers 4


@pytest.fixture
def training(exports):
    return exports[True]


@pytest.fixture
def folder(training, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(training.folder, tmp_path / 'copy')


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_contents(exported):
    assert {file.name for file in exported.folder.iterdir()} - OLDER == EXPORTED
    text = ''.join(
        (exported.folder / name).read_text()
        for name in EXPORTED
        if name.endswith(('.json', '.md')) and name != 'tokenizer.json'
    )
    assert str(exported.folder.parent) not in text and 'distill' not in text
    config = json.loads((exported.folder / 'config.json').read_text())
    assert config['architectures'] == ['PixelSAILForCausalLM'] and config['dtype'] == 'float32'
    assert config['text_config'].get('tie_word_embeddings', False) == exported.tied


def test_model_card_states_facts(exported):
    card = (exported.folder / 'README.md').read_text()
    model = init_model(exported.folder, device='cpu')
    count = sum(value.numel() for value in model.parameters())
    assert f'| parameters | {count:,} |' in card and 'Apache-2.0' in card


def test_edited_generation_settings_reach_our_inferencer(folder):
    edit(folder / 'generation_config.json', lambda content: content.update(max_new_tokens=1))
    assert init_model(folder, device='cpu').generation == dict(max_new_tokens=1, do_sample=False)


def test_another_model(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(TINY_LLM))
    for opened in (init_model, PixelSAILInferencer):
        with pytest.raises(ConfigError, match="model_type is 'qwen2', not 'pixelsail'"):
            opened(tmp_path)


def test_missing_shard(training, tmp_path):
    folder = export_hf(training.cfg, training.checkpoint, tmp_path / 'hf', max_shard_size='20KB')
    shard = sorted(folder.glob('*.safetensors'))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        PixelSAILInferencer(folder, device='cpu')
    for shard in folder.glob('*.safetensors*'):
        shard.unlink()
    with pytest.raises(CheckpointError, match='safetensors'):
        init_model(folder, device='cpu')


@pytest.mark.parametrize('name', ['processor_config.json', 'preprocessor_config.json'])
def test_missing_processor(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f'{name}: no such file'):
        init_model(folder, device='cpu')


@pytest.mark.parametrize('text, message', [('{"model_type"', 'not valid JSON'), ('[1]', 'a list')])
def test_broken_config(folder, text, message):
    (folder / 'config.json').write_text(text)
    with pytest.raises(ConfigError, match=f'config.json.*{message}'):
        init_model(folder, device='cpu')


@pytest.mark.parametrize('key', ['text_config', 'model', 'special_tokens'])
def test_incomplete_config(folder, key):
    edit(folder / 'config.json', lambda content: content.pop(key))
    with pytest.raises(ConfigError, match=f"config.json: .*'{key}' is missing"):
        init_model(folder, device='cpu')


@pytest.mark.parametrize(
    'key, spoil',
    [
        ('model', lambda content: content.update(model=['a'])),
        ('special_tokens', lambda content: content.update(special_tokens='[SEG]')),
        ('text_config', lambda content: content.update(text_config=[1])),
        ('text_config.model_type', lambda content: content['text_config'].pop('model_type')),
        ('model.type', lambda content: content['model'].pop('type')),
        ('model.backbone', lambda content: content['model'].update(backbone='SingleTransformer')),
        ('model.backbone.type', lambda content: content['model']['backbone'].pop('type')),
    ],
)
def test_config_of_wrong_form(folder, key, spoil):
    edit(folder / 'config.json', spoil)
    for opened in (init_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=f"config.json: key '{key}' is missing or of"):
            opened(folder)


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"num_beams": 3}', 'beam search is not supported'),
        ('[1]', 'holds a list'),
        ('{"max_new_tokens": "four"}', 'int'),
        ('{', 'not valid JSON'),
        ('{"cache_implementation": "static"}', "'static' is not supported"),
    ],
)
def test_unusable_generation_settings(folder, text, message):
    (folder / 'generation_config.json').write_text(text)
    with pytest.raises(ConfigError, match=f'generation_config.json: .*{message}'):
        init_model(folder, device='cpu')


def test_one_answer_to_each_question(folder, image):
    """Further answers to the first question would be taken for those to the second."""
    expected = PixelSAILInferencer(folder, device='cpu')(image, ['What?', 'Who?'], batch_size=2)
    edit(
        folder / 'generation_config.json',
        lambda content: content.update(
            num_return_sequences=2, do_sample=True, top_k=1, return_dict_in_generate=True
        ),
    )
    got = PixelSAILInferencer(folder, device='cpu')(image, ['What?', 'Who?'], batch_size=2)
    assert [one['text'] for one in got] == [one['text'] for one in expected]


@pytest.mark.parametrize('name', ['processor_config.json', 'preprocessor_config.json'])
@pytest.mark.parametrize(
    'stages', [None, 'LoadImage', ['LoadImage'], [dict(generation=True)], dict(type='LoadImage')]
)
def test_unusable_transforms(folder, name, stages):
    edit(folder / name, lambda content: content.update(transforms=stages))
    for opened in (
        lambda: init_model(folder, device='cpu'),
        lambda: AutoProcessor.from_pretrained(folder)(text='What?'),
    ):
        with pytest.raises(ConfigError, match="'transforms' is missing or no list"):
            opened()


def test_processor_for_training(folder):
    edit(
        folder / 'processor_config.json',
        lambda content: content['transforms'][0].update(generation=False),
    )
    with pytest.raises(ConfigError, match='generation=True.*processor_config.json'):
        AutoProcessor.from_pretrained(folder)(text='What?')


def test_unknown_decoder(folder):
    edit(folder / 'config.json', lambda content: content['text_config'].update(model_type='new'))
    with pytest.raises(ConfigError, match='config.json: .*new'):
        init_model(folder, device='cpu')


@pytest.mark.parametrize('part', ['neck', 'mask_head'])
def test_code_in_a_config_does_not_run(folder, tmp_path, part):
    """MMEngine would import and call any dotted name."""
    trap = dict(type='os.makedirs', name=str(tmp_path / 'ran'))
    edit(folder / 'config.json', lambda content: content['model'].update({part: trap}))
    for opened in (
        lambda: init_model(folder, device='cpu'),
        lambda: AutoModelForCausalLM.from_pretrained(folder),
    ):
        with pytest.raises(ConfigError, match="type 'os.makedirs' is not a registered model"):
            opened()
    assert not (tmp_path / 'ran').exists()


def test_code_in_a_processor_does_not_run(folder, tmp_path):
    trap = dict(type='os.makedirs', name=str(tmp_path / 'ran'))
    edit(folder / 'preprocessor_config.json', lambda content: content['transforms'].insert(0, trap))
    for opened in (
        lambda: init_model(folder, device='cpu'),
        lambda: AutoProcessor.from_pretrained(folder)(text='What?'),
    ):
        with pytest.raises(ConfigError, match="type 'os.makedirs' is not a registered transform"):
            opened()
    assert not (tmp_path / 'ran').exists()


def test_code_in_generation_settings_does_not_run(folder, tmp_path, image):
    """`generate` takes both as arguments; Transformers does not read them from this file."""
    (tmp_path / 'custom_generate').mkdir()
    (tmp_path / 'custom_generate' / 'generate.py').write_text(
        f'open({str(tmp_path / "ran")!r}, "w")\ndef generate(model, **kwargs): pass\n'
    )
    edit(
        folder / 'generation_config.json',
        lambda content: content.update(
            custom_generate=str(tmp_path), trust_remote_code=True, chat_format='of a base'
        ),
    )
    ask = PixelSAILInferencer(folder, device='cpu')
    assert ask(image, 'What is it?')['masks'].ndim == 3
    assert not (tmp_path / 'ran').exists()
    (folder / 'generation_config.json').unlink()
    edit(
        folder / 'config.json',
        lambda content: content['model'].update(generation=dict(custom_generate=str(tmp_path))),
    )
    assert 'custom_generate' not in init_model(folder, device='cpu').generation


def test_a_file_cannot_ask_for_remote_code(folder):
    edit(
        folder / 'config.json',
        lambda content: content['model']['backbone'].update(trust_remote_code=True),
    )
    with pytest.raises(ConfigError, match='trust_remote_code'):
        init_model(folder, device='cpu')


def test_lora_is_to_be_merged_first(training, tmp_path):
    state = load_state(training.checkpoint)['state_dict']
    state['backbone.llm.model.layers.0.self_attn.q_proj.lora_A.default.weight'] = torch.ones(2, 2)
    save_weights(state, tmp_path / 'lora.safetensors')
    with pytest.raises(CheckpointError, match='merge_lora.py'):
        export_hf(training.cfg, tmp_path / 'lora.safetensors', tmp_path / 'hf')
    assert not (tmp_path / 'hf').exists()


def test_rows_of_other_tokens_are_refused(training, tmp_path):
    """As many tokens in another order: every answer would be wrong without a word."""
    state = load_state(training.checkpoint)['state_dict']
    other = tokenizer_with(NEW_TOKENS[::-1])
    save_weights(state, tmp_path / 'other.safetensors', vocabulary_metadata(other))
    with pytest.raises(CheckpointError, match='other tokens .*2 moved .*give the config'):
        export_hf(training.cfg, tmp_path / 'other.safetensors', tmp_path / 'hf')
    ours = vocabulary_metadata(tokenizer_with())
    save_weights(state, tmp_path / 'ours.safetensors', ours)
    assert export_hf(training.cfg, tmp_path / 'ours.safetensors', tmp_path / 'hf').is_dir()


def test_settings_of_lora_training_are_left_out(training, tmp_path):
    cfg = deepcopy(training.cfg)
    cfg.model.backbone.lora = dict(r=4)
    folder = export_hf(cfg, training.checkpoint, tmp_path / 'hf')
    assert 'lora' not in (folder / 'config.json').read_text()


def test_incomplete_checkpoint(training, tmp_path):
    state = load_state(training.checkpoint)['state_dict']
    del state[next(key for key in state if key.startswith('neck.'))]
    save_weights(state, tmp_path / 'part.safetensors')
    with pytest.raises(CheckpointError, match='missing: neck.'):
        export_hf(training.cfg, tmp_path / 'part.safetensors', tmp_path / 'hf')
    assert list(tmp_path.iterdir()) == [tmp_path / 'part.safetensors']


def test_only_an_export_is_replaced(training, tmp_path, monkeypatch):
    folder = export_hf(training.cfg, training.checkpoint, tmp_path / 'hf')
    assert export_hf(training.cfg, training.checkpoint, folder, 'float16') == folder
    assert init_model(folder, device='cpu').load_report.missing == []
    (folder / 'notes.txt').write_text('mine')
    base, file = tmp_path / 'base', tmp_path / 'file'
    base.mkdir()
    (base / 'config.json').write_text(json.dumps(TINY_LLM))
    file.write_text('mine')
    monkeypatch.chdir(folder)
    for target, message in (
        (folder, 'notes.txt in it would be lost'),
        ('.', 'notes.txt'),
        (base, "model_type is 'qwen2'"),
        (file, 'is a file'),
    ):
        with pytest.raises(ConfigError, match=message):
            export_hf(training.cfg, training.checkpoint, target)
    assert (folder / 'notes.txt').exists() and (base / 'config.json').exists()


@pytest.mark.parametrize('size', ['5Q', 'big', '12'])
def test_unknown_size_of_shards(training, tmp_path, size):
    with pytest.raises(ConfigError, match=f'max_shard_size: .*{size}'):
        export_hf(training.cfg, training.checkpoint, tmp_path / 'hf', max_shard_size=size)


def test_training_pipeline(training, tmp_path):
    cfg = deepcopy(training.cfg)
    cfg.test_pipeline[4].generation = False
    with pytest.raises(ConfigError, match='generation=True'):
        export_hf(cfg, training.checkpoint, tmp_path / 'hf')
