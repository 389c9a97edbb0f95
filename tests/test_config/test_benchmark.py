"""A benchmark's config, merged with a model's."""

import pytest

from pixelsail_mm.config import is_benchmark, read_config
from pixelsail_mm.errors import ConfigError

MODEL = """
model = dict(type='A', generation=dict(max_new_tokens=3))
data_root = '/elsewhere'
test_pipeline = [dict(type='Load')]
eval_loader = dict(batch_size=32, num_workers=0)
test_dataloader = [dict(batch_size=1)]
test_evaluator = []
"""
BENCHMARK = """
model_config = 'MODEL'
model = dict(generation=dict(max_new_tokens=7))
test_dataloader = [
    dict(dataset=dict(type='Reader', data_root='data/set')),
    dict(batch_size=2, dataset=dict(type='MixtureDataset', datasets=[
        dict(type='Reader', data_root='data/set'), dict(type='Reader', data_root='mine/data')])),
]
test_evaluator = [dict(type='Metric')] * 2
"""


@pytest.fixture
def files(tmp_path):
    model, benchmark = tmp_path / 'model.py', tmp_path / 'benchmark.py'
    model.write_text(MODEL)
    benchmark.write_text(BENCHMARK.replace('MODEL', str(model)))
    return model, benchmark


def test_test_sets_get_loader_pipeline_and_root_of_the_model(files):
    model, benchmark = files
    cfg = read_config(benchmark, ['model.b=1'])
    first, second = cfg.test_dataloader
    assert first.to_dict() == dict(
        batch_size=32,
        num_workers=0,
        dataset=dict(type='Reader', data_root='/elsewhere/set', pipeline=[dict(type='Load')]),
    )
    assert second.batch_size == 2
    assert [part.data_root for part in second.dataset.datasets] == ['/elsewhere/set', 'mine/data']
    assert cfg.model.to_dict() == dict(type='A', generation=dict(max_new_tokens=7), b=1)
    assert cfg.test_evaluator == [dict(type='Metric')] * 2
    assert is_benchmark(cfg) and cfg.filename == str(benchmark) and cfg.model_config == str(model)


def test_the_model_may_be_named(files, tmp_path):
    other = tmp_path / 'other.py'
    other.write_text(MODEL.replace("'A'", "'B'"))
    assert read_config(files[1], model=str(other)).model.type == 'B'


def test_models_that_cannot_be_merged(files, tmp_path):
    model, benchmark = files
    with pytest.raises(ConfigError, match='--model gone.py: no such file'):
        read_config(benchmark, model='gone.py')
    with pytest.raises(ConfigError, match='model.py has a model of its own'):
        read_config(model, model=str(model))
    model.write_text("model = dict(type='A')\ndata_root = 'data'\n")
    with pytest.raises(ConfigError, match='model.py: has no eval_loader, test_pipeline, which'):
        read_config(benchmark)
