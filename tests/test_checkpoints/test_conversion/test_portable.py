"""What of a training is carried to other machines."""

import pytest
import torch
from mmengine.config import Config

from pixelsail_mm.checkpoints.checkpoint import save_weights
from pixelsail_mm.checkpoints.conversion.portable import (
    beyond_json,
    check_exportable,
    portable_model,
    prediction_weights,
)
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, tiny_model_config


@pytest.fixture
def cfg():
    return Config(dict(model=tiny_model_config('tok'), test_pipeline=[dict(type='LoadImage')]))


def test_weights_of_training_stay_and_tied_ones_are_converted_once(tmp_path):
    state = MODELS.build(tiny_model_config(byte_tokenizer())).state_dict()
    save_weights(state | {'distill.0.proj.weight': torch.ones(2, 2)}, tmp_path / 'w.safetensors')
    used, vocabulary = prediction_weights(tmp_path / 'w.safetensors', 'float16')
    assert used.keys() == state.keys() and vocabulary is None
    embedding = used['backbone.llm.model.embed_tokens.weight']
    assert used['backbone.llm.lm_head.weight'] is embedding and embedding.dtype == torch.float16


@pytest.mark.parametrize(
    'change, dtype, message',
    [
        (dict(model=None), None, 'no `model`'),
        (dict(test_pipeline=None), None, 'no `test_pipeline`'),
        (dict(), 'int3', "'int3': use one of .*float16"),
    ],
)
def test_unsuitable_settings_are_named(cfg, change, dtype, message):
    check_exportable(cfg, 'float16')
    cfg.merge_from_dict(change)
    with pytest.raises(ConfigError, match=message):
        check_exportable(cfg, dtype)


def test_what_a_base_generates_with_is_kept(cfg, tmp_path):
    """Its repetition penalty counts in our answers too; its sampling settings do not."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY_LLM | dict(vocab_size=99)))
    base.generation_config.update(repetition_penalty=1.3, do_sample=True, top_k=5, max_length=7)
    base.save_pretrained(tmp_path / 'base')
    cfg.model.backbone.llm = str(tmp_path / 'base')
    model = portable_model(cfg)
    assert model['generation'] == dict(repetition_penalty=1.3, do_sample=False, max_new_tokens=4)
    assert model['backbone']['llm']['hidden_size'] == TINY_LLM['hidden_size']
    cfg.model.backbone.llm = str(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='backbone.llm .*nowhere.*give the folder of the base'):
        portable_model(cfg)


def test_what_json_has_no_place_for(cfg):
    assert beyond_json(cfg, dict(test_pipeline=[])) == {}
    cfg.visualizer = dict(type='Visualizer')
    assert beyond_json(cfg, dict(test_pipeline=[])) == {}
    cfg.visualizer = dict(type='PixelVisualizer', panel_size=[9, 9], save_dir='/elsewhere')
    cfg.custom_imports = dict(imports='mine')
    stages = [dict(type='BuildConversation', tokenizer='/elsewhere/tok')]
    assert beyond_json(cfg, dict(test_pipeline=[], inference_pipeline=stages)) == dict(
        custom_imports=dict(imports='mine'),
        visualizer=dict(type='PixelVisualizer', panel_size=[9, 9]),
        inference_pipeline=[dict(type='BuildConversation', tokenizer='.')],
    )
