"""A published folder gives the answers of the model it was made from."""

import importlib
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config

from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.checkpoints.checkpoint import load_state, save_weights
from pixelsail_mm.checkpoints.conversion.publish import publish_model, published_weights
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.hf.export import export_hf
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

    from pixelsail_mm.checkpoints.conversion.publish import portable_model
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


_HEAD = '''
from pixelsail_mm.models.heads import SegTokenMaskHead
from pixelsail_mm.registry import MODELS


@MODELS.register_module()
class HeadOfMine(SegTokenMaskHead):
    """A user's own."""
'''


def forget_head():
    """As in a new process: the module is not imported, nothing of it is registered."""
    sys.modules.pop('head_of_mine', None)
    MODELS.module_dict.pop('HeadOfMine', None)
    importlib.invalidate_caches()


@pytest.fixture
def with_own_head(trained, tmp_path, monkeypatch):
    """A training with a head of the user's, whose module can be found."""
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code/head_of_mine.py').write_text(_HEAD)
    cfg, checkpoint = trained
    cfg.custom_imports = dict(imports=['head_of_mine'])
    cfg.model.mask_head.type = 'HeadOfMine'
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / 'code')
        importlib.import_module('head_of_mine')
        yield cfg, checkpoint, patch
    forget_head()


@pytest.mark.parametrize('write', [publish_model, export_hf])
def test_modules_of_the_user_are_kept(with_own_head, tmp_path, write):
    cfg, checkpoint, patch = with_own_head
    folder = write(cfg, checkpoint, tmp_path / 'model')
    forget_head()
    if write is export_hf:
        # Data runs no code: the module is named, and imported by the user alone.
        message = "'HeadOfMine' is not a registered model; import head_of_mine first .*PYTHONPATH"
        with pytest.raises(ConfigError, match=f'config.json.*{message}'):
            init_model(folder, device='cpu')
        assert 'head_of_mine' not in sys.modules
        importlib.import_module('head_of_mine')
    model = init_model(folder, device='cpu')
    assert type(model.mask_head).__name__ == 'HeadOfMine'
    assert answer(folder)['masks'].shape[1:] == (30, 45)
    again = publish_model(model.cfg, folder / 'model.safetensors', tmp_path / 'again')
    assert type(init_model(again, device='cpu').mask_head).__name__ == 'HeadOfMine'

    forget_head()
    patch.undo()
    with pytest.raises(ConfigError, match='again/config.py: custom_imports: .*head_of_mine.*No '
                                          "module named 'head_of_mine'.*PYTHONPATH"):
        init_model(again, device='cpu')


def test_pipeline_and_visualizer_of_the_inferencer_are_kept(trained, tmp_path):
    cfg, checkpoint = trained
    cfg.inference_pipeline = [dict(stage) for stage in cfg.test_pipeline]
    cfg.inference_pipeline[3]['max_size'] = 16
    cfg.visualizer = dict(type='PixelVisualizer', panel_size=(99, 99), save_dir=str(tmp_path),
                          vis_backends=[dict(type='LocalVisBackend')])
    folder = publish_model(cfg, checkpoint, tmp_path / 'model')
    ask = PixelSAILInferencer(folder, device='cpu')
    assert ask.visualizer.panel_size == (99, 99)
    assert ask.pipeline.stages[3].max_size == 16
    assert str(tmp_path) not in (folder / 'config.py').read_text()
    cfg.visualizer = dict(type='Visualizer')
    assert 'visualizer' not in (publish_model(cfg, checkpoint, folder) / 'config.py').read_text()
