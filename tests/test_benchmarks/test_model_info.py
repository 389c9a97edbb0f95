"""Sizes computed from configs, against models with weights and published numbers."""

import math

import pytest
from mmengine import Config
from safetensors import safe_open

from pixelsail_mm.benchmarks.model_info import ModelInfo, model_info, report
from pixelsail_mm.downloads import load_catalogue
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config

PIPELINE = [dict(type='ResizeToGrid', patch_size=8, max_size=64)]
# Totals of the published models, each with all rows of its embedding.
PUBLISHED = {
    'qwen2.5_0.5b': 494_032_768,
    'qwen2.5_3b': 3_085_938_688,
    'qwen2.5_7b': 7_615_616_512,
    'qwen3_0.6b': 596_049_920,
    'smollm2_135m': 134_515_008,
}


@pytest.mark.parametrize(
    'name',
    [
        name
        for name, entry in load_catalogue().items()
        if 'architecture' in entry and name != 'smollm2_135m_hub'
    ],
)
def test_architectures_have_the_published_sizes(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**load_catalogue()[name]['architecture'])
        )
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.fixture
def tokenizer(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / 'tokenizer')
    return str(tmp_path / 'tokenizer')


@pytest.mark.parametrize(
    'parts',
    [
        {},
        dict(backbone=dict(lora=dict(type='LoraConfig', r=2))),
        dict(trainable=['mask_head']),
        dict(
            neck=dict(type='BilinearUpsampler'), prompt_injector=dict(type='PooledPromptInjector')
        ),
    ],
    ids=['plain', 'lora', 'partly frozen', 'baseline'],
)
def test_counts_are_those_of_the_model_with_weights(tokenizer, parts):
    cfg = tiny_model_config(tokenizer)
    cfg['backbone'] |= parts.get('backbone', {})
    cfg |= {key: value for key, value in parts.items() if key != 'backbone'}
    info = model_info(Config(dict(model=cfg, test_pipeline=PIPELINE)))
    model = MODELS.build(cfg)
    assert info.total == sum(p.numel() for p in model.parameters())
    assert info.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert ('LoRA' in info.parts) is ('backbone' in parts)
    assert info.image_tokens == 8 * 8 + 2 and info.precision == 'float32'


@pytest.mark.parametrize('name', ['pixelsail_tiny', 'pixelsail_tiny_grounding'])
def test_counts_are_those_of_the_shipped_weights(repo_root, name):
    folder = repo_root / 'demo/checkpoints' / name
    info = model_info(Config.fromfile(repo_root / f'configs/pixelsail/{name}.py'), str(folder))
    with safe_open(folder / 'model.safetensors', 'pt') as weights:
        numbers = [math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()]
    assert info.total == sum(numbers)


def test_a_hub_model_gets_the_rows_that_its_tokenizer_and_ours_need(repo_root):
    info = model_info(Config.fromfile(repo_root / 'configs/pixelsail/pixelsail_0.5b.py'))
    assert info.vocabulary == 151_665 + 6 + 19
    # 357,898,112 parameters of Qwen2.5-0.5B lie behind its embedding of 151,936 x 896.
    assert info.parts['transformer'] == 494_032_768 - 151_936 * 896
    assert info.parts['token embedding'] == 151_690 * 896
    assert info.parts['distillation (training only)'] == 512 * 256 + 256 + 896 * 256 + 256
    assert info.total + info.parts['distillation (training only)'] == info.trainable


def test_training_state_by_hand():
    info = ModelInfo(
        parts=dict(transformer=2**30, neck=2**30),
        trainable=2**30,
        four_bit=0,
        precision='bfloat16',
        vocabulary=1,
        image_tokens=1,
        image_size=(1, 1),
        schedule='',
    )
    assert info.training_state() == 2 * 2 + 2 + 12
    assert info.training_state(1, 4) == 2 * 2 + 2 + 3
    assert info.training_state(2, 4) == 2 * 2 + (2 + 12) / 4
    assert info.training_state(3, 4) == (2 * 2 + 2 + 12) / 4
    quantised = ModelInfo(**{**vars(info), 'four_bit': 2**30})
    assert quantised.training_state() == 2 + (0.5 + 1 / 16) + 2 + 12
    single = ModelInfo(**{**vars(info), 'precision': 'float32'})
    assert single.training_state() == 4 * 2 + 4 + 8
    assert 'ZeRO-3' in report(info, 4) and '4.50 GiB' in report(info, 4)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(tokenizer='nobody/nothing'), "model.tokenizer='nobody/nothing' is neither"),
        (
            dict(backbone=dict(llm='nobody/nothing')),
            "model.backbone.llm='nobody/nothing' is neither",
        ),
    ],
)
def test_what_is_not_known_is_named(tokenizer, change, message):
    cfg = Config(dict(model=tiny_model_config(tokenizer), test_pipeline=PIPELINE))
    cfg.merge_from_dict(dict(model=change))
    with pytest.raises(ConfigError, match=message):
        model_info(cfg)
    with pytest.raises(ConfigError, match='no `model`'):
        model_info(Config(dict()))
