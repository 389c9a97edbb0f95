import json

import pytest
import torch

from pixelsail_mm.engine.strategies.deepspeed import PixelDeepSpeedStrategy, adapt, read_preset
from pixelsail_mm.errors import ConfigError


@pytest.mark.parametrize('name, stage', [('zero1', 1), ('zero2', 2), ('deepspeed_zero3', 3)])
def test_presets_are_xtuners(name, stage):
    assert read_preset(name)['zero_optimization']['stage'] == stage


def test_json_file(tmp_path):
    path = tmp_path / 'z.json'
    path.write_text(json.dumps(dict(zero_optimization=dict(stage=2))))
    assert read_preset(path) == dict(zero_optimization=dict(stage=2))
    path.write_text('{')
    with pytest.raises(ConfigError, match='not valid JSON'):
        read_preset(path)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match='zero4: neither a preset .zero1, zero2'):
        read_preset('zero4')


@pytest.mark.parametrize('cuda', [False, True])
def test_device_decides_precision_and_overlap(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    config = adapt(read_preset('zero2'), micro_batch=3, accumulation=8, max_norm=1.0)
    assert config['bf16'] == dict(enabled=cuda)
    assert config['fp16'] == dict(enabled=False)
    assert config['zero_optimization']['overlap_comm'] is cuda
    assert config['zero_optimization'].get('stage3_allgather_sequential', False) is not cuda
    assert 'auto' not in json.dumps(config)
    assert config['train_micro_batch_size_per_gpu'] == 3
    assert config['gradient_accumulation_steps'] == 8
    assert config['gradient_clipping'] == 1.0


def test_fp16_of_a_file_is_kept_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    config = adapt(dict(fp16=dict(enabled=True)), 1, 1, 0)
    assert config['fp16']['enabled'] and not config['bf16']['enabled']


def test_a_second_strategy_in_one_process(tmp_path):
    """MMEngine registers DeepSpeed's optimizers with each, and the second time it failed."""
    for name in ('zero1', 'zero2'):
        strategy = PixelDeepSpeedStrategy(config=read_preset(name), work_dir=str(tmp_path))
        assert strategy.config['zero_optimization']['stage'] == int(name[-1])
