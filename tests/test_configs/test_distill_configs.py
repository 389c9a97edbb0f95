"""configs/distill: the model is built without data and without the expert's weights."""

from pathlib import Path

import pytest
import torch
from mmengine import Config

from pixelsail_mm.models.experts.cache.fingerprint import expert_fingerprint
from pixelsail_mm.registry import MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.chdir(ROOT)  # the tokenizer is one that ships
    return Config.fromfile(ROOT / 'configs/distill/isnet_photos.py')


def test_student_is_small_and_takes_both_maps(cfg):
    """The experts are stood in for by what returns nothing; ISNet is a download."""
    model = cfg.model.to_dict()
    for loss in model['distill']:
        loss['expert'] = lambda data_samples: [None] * len(data_samples)
    built = MODELS.build(model)
    assert sum(p.numel() for p in built.parameters()) < 5e6
    assert {loss.name: (loss.feature, loss.expert_channels) for loss in built.distill} == dict(
        isnet_coarse=('backbone', 256), isnet_fine=('neck', 128)
    )
    maps = [torch.zeros(2, 3, loss.proj.in_features) for loss in built.distill]
    assert all(loss([feature], [None]) == 0 for loss, feature in zip(built.distill, maps))


def test_caches_are_checked_against_isnet(cfg):
    for loss, tensor in zip(cfg.model.distill, ('input.832', 'input.948')):
        found = expert_fingerprint(loss.expert.of)
        assert found['expert'] == 'OnnxExpert' and found['feature']['output'] == tensor
        assert found['preprocessing']['mean'] == [128] * 3
        assert found['preprocessing']['max_value'] == 255
