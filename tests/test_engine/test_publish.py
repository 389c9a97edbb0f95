"""A published folder gives the answers of the model it was made from."""

import numpy as np
import pytest
import torch
from mmengine.config import Config

from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.engine.checkpoint import load_state, save_weights
from pixelsail_mm.engine.publish import publish_model, published_weights
from pixelsail_mm.engine.vocabulary import vocabulary_metadata
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.checkpoint_cases import tiny_pixel_sail, tokenizer_with
from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config


@pytest.fixture
def trained(tmp_path):
    """Config and checkpoint as a training leaves them: absolute paths, expert projections."""
    work = tmp_path / 'work'
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(work / 'tok')
    path = str(work / 'tok')
    torch.manual_seed(0)
    state = MODELS.build(tiny_model_config(tokenizer)).state_dict()
    state['distill.0.proj.weight'] = torch.ones(2, 2)
    save_weights(state, work / 'model.safetensors')
    pipeline = [dict(type='LoadImage'), dict(type='LoadMasks'), dict(type='LoadVisualPrompts'),
                dict(type='ResizeToGrid', patch_size=8, max_size=64),
                dict(type='BuildConversation', tokenizer=path, generation=True),
                dict(type='PackPixelInputs')]
    model = dict(tiny_model_config(path), distill=[dict(type='ExpertDistillLoss')])
    return Config(dict(model=model, test_pipeline=pipeline)), work / 'model.safetensors'


def answer(folder):
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    ask = PixelSAILInferencer(folder, device='cpu')
    return ask(image, 'Where?', answer_prefix='[SEG].')


def test_folder_works_elsewhere_and_without_the_training_files(trained, tmp_path):
    cfg, checkpoint = trained
    folder = publish_model(cfg, checkpoint, tmp_path / 'new/model')
    before = load_state(checkpoint)['state_dict']
    moved = folder.rename(tmp_path / 'moved')
    checkpoint.parent.rename(tmp_path / 'gone')
    after = load_state(moved / 'model.safetensors')['state_dict']
    assert set(before) - set(after) == {'distill.0.proj.weight'}
    for key, value in after.items():
        assert torch.equal(value, before[key])
    assert str(tmp_path) not in (moved / 'config.py').read_text()
    assert init_model(moved, device='cpu').load_report is not None
    assert answer(moved)['masks'].shape[1:] == (30, 45)


def test_rows_stay_with_the_tokens_they_were_trained_with(trained, tmp_path):
    """The config names a tokenizer of as many tokens in another order."""
    cfg, checkpoint = trained
    source = tiny_pixel_sail(True, new_tokens=('<ship>', '<crane>'))
    save_weights(source.state_dict(), checkpoint, vocabulary_metadata(source.tokenizer))
    tokenizer_with(('<crane>', '<ship>')).save_pretrained(cfg.model.tokenizer)
    model = init_model(publish_model(cfg, checkpoint, tmp_path / 'model'), device='cpu')
    rows = [m.backbone.llm.get_input_embeddings().weight[m.tokenizer.convert_tokens_to_ids(token)]
            for token in ('<crane>', '<ship>') for m in (source, model)]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[2], rows[3])


def test_work_directory_is_not_replaced(trained, tmp_path):
    cfg, checkpoint = trained
    with pytest.raises(ConfigError, match='tok in it would be lost .*name a new folder'):
        publish_model(cfg, checkpoint, checkpoint.parent)
    assert checkpoint.is_file()


def test_tied_weights_are_converted_once(trained):
    _, checkpoint = trained
    state, _ = published_weights(checkpoint, 'float16')
    embedding = state['backbone.llm.model.embed_tokens.weight']
    assert state['backbone.llm.lm_head.weight'] is embedding and embedding.dtype == torch.float16


def test_half_precision_halves_the_file_and_hardly_changes_the_masks(trained, tmp_path):
    cfg, checkpoint = trained
    whole = publish_model(cfg, checkpoint, tmp_path / 'float32')
    half = publish_model(cfg, checkpoint, tmp_path / 'float16', 'float16')
    sizes = [(folder / 'model.safetensors').stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    np.testing.assert_allclose(answer(half)['mask_scores'], answer(whole)['mask_scores'],
                               atol=1e-2)


def test_existing_folder_survives_a_failure(trained, tmp_path):
    cfg, checkpoint = trained
    folder = publish_model(cfg, checkpoint, tmp_path / 'model')
    weights = (folder / 'model.safetensors').read_bytes()
    cfg.model.tokenizer = str(tmp_path / 'nowhere')
    with pytest.raises(Exception, match='nowhere'):
        publish_model(cfg, checkpoint, folder)
    assert (folder / 'model.safetensors').read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir() if 'model' in path.name] == ['model']


@pytest.mark.parametrize('change, message', [
    (dict(model=None), 'model'), (dict(test_pipeline=None), 'test_pipeline')])
def test_unsuitable_configs_are_named(trained, tmp_path, change, message):
    cfg, checkpoint = trained
    cfg.merge_from_dict(change)
    with pytest.raises(ConfigError, match=message):
        publish_model(cfg, checkpoint, tmp_path / 'model')


def test_unknown_precision_lists_the_known_ones(trained, tmp_path):
    with pytest.raises(ConfigError, match='float16'):
        publish_model(*trained, tmp_path / 'model', 'int3')


def test_what_a_base_generates_with_is_kept(trained, tmp_path):
    """Its repetition penalty counts in our answers too; its sampling settings do not."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pixelsail_mm.engine.publish import portable_model
    from pixelsail_mm.testing.tiny_models import TINY_LLM
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY_LLM | dict(vocab_size=99)))
    base.generation_config.update(repetition_penalty=1.3, do_sample=True, top_k=5, max_length=7)
    base.save_pretrained(tmp_path / 'base')
    cfg, _ = trained
    cfg.model.backbone.llm = str(tmp_path / 'base')
    model = portable_model(cfg)
    assert model['generation'] == dict(repetition_penalty=1.3, do_sample=False, max_new_tokens=4)
    assert model['backbone']['llm']['hidden_size'] == TINY_LLM['hidden_size']
    cfg.model.backbone.llm = str(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='backbone.llm .*nowhere.*give the folder of the base'):
        portable_model(cfg)
