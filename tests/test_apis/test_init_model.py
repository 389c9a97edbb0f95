"""init_model: forms of the config, paths, weights, errors."""

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file, save_file

from pixelsail_mm.apis import init_model
from pixelsail_mm.errors import CheckpointError, ConfigError


def test_folder_form_works_from_any_directory(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = init_model(str(shipped), device='cpu')
    assert not model.training
    assert model.load_report.missing == [] and model.load_report.unexpected == []
    weights = load_file(shipped / 'model.safetensors')
    torch.testing.assert_close(
        model.backbone.patch_embed.weight, weights['backbone.patch_embed.weight']
    )
    assert model.cfg.model.tokenizer == str(shipped / 'tokenizer')
    assert model.cfg.test_pipeline[4].tokenizer == str(shipped / 'tokenizer')


def test_folder_form_with_relative_path(shipped, monkeypatch):
    monkeypatch.chdir(shipped.parent)
    assert init_model(shipped.name, device='cpu').load_report.missing == []


def test_config_file_object_and_dict(shipped):
    path, weights = shipped / 'config.py', shipped / 'model.safetensors'
    from_file = init_model(path, weights, 'cpu')
    from_object = init_model(from_file.cfg, weights, 'cpu')
    from_dict = init_model(from_file.cfg.to_dict(), weights, 'cpu')
    for model in (from_object, from_dict):
        assert not model.training
        for (name, one), (_, other) in zip(from_file.named_parameters(), model.named_parameters()):
            assert torch.equal(one, other), name


def test_the_callers_config_is_not_changed(shipped):
    cfg = Config.fromfile(shipped / 'config.py')
    cfg.model.tokenizer = str(shipped / 'tokenizer')
    before = cfg.pretty_text
    init_model(cfg, shipped / 'model.safetensors', 'cpu', {'model.generation.max_new_tokens': 2})
    assert cfg.pretty_text == before


def test_cfg_options(shipped):
    model = init_model(shipped, device='cpu', cfg_options={'model.generation.max_new_tokens': 2})
    assert model.generation['max_new_tokens'] == 2


def test_random_weights_are_announced(shipped):
    with pytest.warns(UserWarning, match='random weights'):
        model = init_model(shipped / 'config.py', device='cpu')
    assert model.load_report is None


def test_experts_are_not_built(shipped):
    distill = [dict(type='ExpertDistillLoss', expert=dict(type='NoSuchExpert'))]
    model = init_model(shipped, device='cpu', cfg_options={'model.distill': distill})
    assert len(model.distill) == 0


def test_incomplete_checkpoint_is_refused(shipped, tmp_path):
    state = load_file(shipped / 'model.safetensors')
    removed = next(key for key in state if key.startswith('mask_head.'))
    del state[removed]
    save_file(state, tmp_path / 'part.safetensors')
    with pytest.raises(CheckpointError, match=removed.replace('.', r'\.')):
        init_model(shipped, tmp_path / 'part.safetensors', 'cpu')


def test_missing_files_are_named(shipped, tmp_path):
    with pytest.raises(ConfigError, match='nowhere.py: no such file'):
        init_model('nowhere.py')
    with pytest.raises(
        ConfigError, match=r'expected one config \(config.py or config.json\), found none'
    ):
        init_model(tmp_path)
    for name in ('a.py', 'b.py'):
        (tmp_path / name).write_text('model = None')
    with pytest.raises(ConfigError, match=r"found \['a.py', 'b.py'\]"):
        init_model(tmp_path)
    with pytest.raises(ConfigError, match='a.py has no `model`'):
        init_model(tmp_path / 'a.py')
    with pytest.raises(CheckpointError, match=r'gone.pth: no such file'):
        init_model(shipped, tmp_path / 'gone.pth', 'cpu')
