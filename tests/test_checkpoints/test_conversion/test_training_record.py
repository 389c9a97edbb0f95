"""What a training showed a model, found again in its data and carried to whatever opens it."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from pixelsail_mm.apis import PixelSAILInferencer
from pixelsail_mm.checkpoints.checkpoint import save_weights
from pixelsail_mm.checkpoints.conversion.training_record import read_training, recorded_pipelines
from pixelsail_mm.datasets.transforms import LoadImage, ResizeToGrid
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.hf.export import export_hf
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import TINY_LLM, tiny_model_config
from pixelsail_mm.tokenization import build_tokenizer, read_id_ranges, write_id_ranges
from pixelsail_mm.worlds.shapes_world import make_shapes_world

QUESTION = 'Please segment the red circle.'


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world') / 'data'
    make_shapes_world(folder, 'mini', counts=dict(train=40, val=1, test=1))
    return folder


@pytest.fixture
def training(world, repo_root, monkeypatch, tmp_path):
    """Config of ShapesWorld with a model from nothing, and its weights."""
    monkeypatch.setenv('PIXELSAIL_DATA', str(world))
    data = Config.fromfile(repo_root / 'configs/_base_/datasets/shapes_world.py')
    model = tiny_model_config(str(world / 'tokenizer'), TINY_LLM)
    torch.manual_seed(0)
    save_weights(MODELS.build(model).state_dict(), tmp_path / 'model.safetensors')
    cfg = Config(
        dict(
            model=model,
            train_dataloader=data.train_dataloader.to_dict(),
            test_pipeline=[stage.to_dict() for stage in data.test_pipeline],
        )
    )
    return cfg, tmp_path / 'model.safetensors'


def words_of(cfg, ids):
    tokenizer = build_tokenizer(cfg.model.tokenizer)
    return {tokenizer.decode([index]) for index in ids}


def recorded_pipeline(cfg, *samples):
    return recorded_pipelines(cfg, *samples)['test_pipeline']


def edit_stage(folder, kind, **settings):
    """Change settings of a stage in an exported folder."""
    for name in ('preprocessor_config.json', 'processor_config.json'):
        content = json.loads((folder / name).read_text())
        for stage in content['transforms']:
            if stage['type'] == kind:
                stage.update(settings)
        (folder / name).write_text(json.dumps(content))


def keys(stages):
    return stages[3]['max_size'], stages[4].get('trained_tokens')


def test_record_is_what_the_samples_hold(training):
    cfg, _ = training
    record = read_training(cfg, 60)
    assert (record.samples, record.longest_side) == (60, 64)
    words = words_of(cfg, record.token_ids)
    assert {'Please', ' segment', ' red', ' circle', '[SEG]', '<vpatch>', '\n'} <= words
    # In the tokenizer, and in no sample.
    assert not {' image', ' segmentation', 'user'} & words
    assert read_training(cfg, 7).samples == 7


def test_an_exported_model_knows_what_it_was_trained_on(training, tmp_path):
    folder = export_hf(*training, tmp_path / 'model', training_samples=40)
    ask = PixelSAILInferencer(folder, device='cpu')
    photo = np.random.default_rng(0).integers(0, 256, (300, 451, 3), dtype=np.uint8)
    result = ask(photo, QUESTION, answer_prefix='[SEG].')
    assert result['masks'].shape[1:] == (300, 451)
    assert [text.split(':')[0] for text in result['warnings'] if 'scaled' in text] == [
        'the picture of 451x300 pixels is scaled to 64x48'
    ]
    assert not any('not among the words' in text for text in result['warnings'])
    asked = ask(photo, 'Please segment the cat.')['warnings']
    assert any("training samples that were read: 'cat' " in text for text in asked)
    # Exported again, without the data, it still knows.
    again = export_hf(ask.model.cfg, folder / 'model.safetensors', tmp_path / 'again')
    ask = PixelSAILInferencer(again, device='cpu')
    assert ask(photo, 'Please segment the cat.')['warnings'] == asked


def test_nothing_is_written_where_nothing_is_read(training):
    cfg, _ = training
    assert keys(recorded_pipeline(cfg, 0)) == (1024, None)
    cfg.train_dataloader = None
    assert keys(recorded_pipeline(cfg)) == (1024, None)


def test_words_of_a_pre_trained_base_are_not_known(training):
    """It has read more than this training shows; pictures only this training shows."""
    cfg, _ = training
    cfg.model.backbone.llm = 'some/base'
    assert keys(recorded_pipeline(cfg, 20)) == (64, None)


def test_nothing_is_known_of_weights_that_init_cfg_loads(training, logged):
    cfg, _ = training
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='x')
    assert keys(recorded_pipeline(cfg, 20)) == (1024, None)
    assert any('init_cfg' in line and 'not written down' in line for line in logged)


@pytest.mark.parametrize('llm', [None, 'some/base'])
def test_larger_pictures_of_the_weights_it_started_from_count(training, tmp_path, llm):
    cfg, checkpoint = training
    first = export_hf(cfg, checkpoint, tmp_path / 'first', training_samples=20)
    for earlier, expected in ((96, 96), (32, 64), (2048, 1024)):
        edit_stage(first, 'ResizeToGrid', max_size=earlier)
        cfg.load_from = str(first / 'model.safetensors')
        cfg.model.backbone.llm = llm or cfg.model.backbone.llm
        assert keys(recorded_pipeline(cfg, 20))[0] == expected
    edit_stage(first, 'ResizeToGrid', rule='area')
    assert keys(recorded_pipeline(cfg, 20))[0] == 1024


def test_the_record_is_in_both_pipelines(training, tmp_path):
    cfg, checkpoint = training
    cfg.inference_pipeline = [stage.to_dict() for stage in cfg.test_pipeline]
    cfg.inference_pipeline[3].max_size = 800
    folder = export_hf(cfg, checkpoint, tmp_path / 'model', training_samples=40)
    ask = PixelSAILInferencer(folder, device='cpu')
    assert keys(ask.model.cfg.inference_pipeline) == keys(ask.model.cfg.test_pipeline)
    assert ask.pipeline.stages[3].max_size == 64
    assert ask.pipeline.stages[4].unseen_words(
        dict(conversation=[dict(human='Please segment the cat.')])
    ) == ['cat']


def test_types_may_be_classes(training):
    cfg, _ = training
    for index, kind in ((0, LoadImage), (3, ResizeToGrid)):
        cfg.test_pipeline[index].type = kind
    assert keys(recorded_pipeline(cfg, 20))[0] == 64


def test_sizes_by_area_stay_as_they_are(training):
    cfg, _ = training
    cfg.test_pipeline[3].rule = 'area'
    assert recorded_pipeline(cfg, 20)[3]['max_size'] == 1024


def test_words_of_the_weights_it_started_from_count(training, tmp_path):
    cfg, checkpoint = training
    first = export_hf(cfg, checkpoint, tmp_path / 'first', training_samples=40)
    ids = read_id_ranges(keys(recorded_pipeline(cfg, 40))[1])
    more = build_tokenizer(cfg.model.tokenizer).get_vocab()['user']
    assert write_id_ranges(ids) in (first / 'processor_config.json').read_text()
    edit_stage(first, 'BuildConversation', trained_tokens=write_id_ranges(ids | {more}))
    cfg.load_from = str(first / 'model.safetensors')
    assert read_id_ranges(keys(recorded_pipeline(cfg, 40))[1]) == ids | {more}


@pytest.fixture
def logged(monkeypatch):
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'log', lambda level, text, *args, **kwargs: lines.append(text))
    return lines


def test_unknown_weights_at_the_start_are_said(training, logged):
    cfg, checkpoint = training
    cfg.load_from = str(checkpoint)
    assert keys(recorded_pipeline(cfg, 20)) == (1024, None)
    assert any('load_from' in line and 'export those weights first' in line for line in logged)


def test_missing_data_is_said(training, logged, tmp_path):
    cfg, checkpoint = training
    for part in cfg.train_dataloader.dataset.datasets:
        part.data_root = str(tmp_path / 'gone')
    assert keys(recorded_pipeline(cfg)) == (1024, None)
    assert any('not written down' in line and 'export where the data is' in line for line in logged)
    assert export_hf(cfg, checkpoint, tmp_path / 'model').is_dir()


@pytest.mark.parametrize(
    'ids, text', [((), ''), ((5,), '5'), ((3, 1, 2, 2, 7, 9, 10), '1-3,7,9-10')]
)
def test_ranges(ids, text):
    assert write_id_ranges(ids) == text and read_id_ranges(text) == frozenset(ids)


@pytest.mark.parametrize('text', ['a', '1-', '1,,2', [1, 2], '-'])
def test_malformed_ranges(text):
    with pytest.raises(ConfigError, match='token ids'):
        read_id_ranges(text)
