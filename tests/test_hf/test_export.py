"""An exported folder: complete, movable, with modules, visualizer and words of the user."""

import importlib
import sys

import numpy as np
import pytest
import torch

from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.checkpoints.folders.reading import read_model_config
from pixelsail_mm.checkpoints.loading.vocabulary import stored_vocabulary, vocabulary_metadata
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.hf.export import export_hf
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import write_tiny_model
from tests.test_hf.conftest import write_training


@pytest.fixture
def trained(tmp_path):
    """Config and checkpoint as a training leaves them: absolute paths, expert projections."""
    (tmp_path / 'work').mkdir()
    training = write_training(tmp_path / 'work', True)
    return training.cfg, training.checkpoint


def answer(folder):
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    ask = PixelSAILInferencer(folder, device='cpu')
    return ask(image, 'Where?', answer_prefix='[SEG].')


def test_folder_works_elsewhere_and_without_the_training_files(trained, tmp_path):
    cfg, checkpoint = trained
    folder = export_hf(cfg, checkpoint, tmp_path / 'new/model')
    before = load_state(checkpoint)['state_dict']
    moved = folder.rename(tmp_path / 'moved')
    checkpoint.parent.rename(tmp_path / 'gone')
    after = load_state(moved / 'model.safetensors')['state_dict']
    assert set(before) - set(after) == {'distill.0.proj.weight'}
    for key, value in after.items():
        assert torch.equal(value, before[key])
    assert not (moved / 'config.py').exists()
    assert init_model(moved, device='cpu').load_report is not None
    assert answer(moved)['masks'].shape[1:] == (30, 45)


def test_an_export_of_an_export_is_the_same(trained, tmp_path):
    folder = export_hf(*trained, tmp_path / 'model')
    cfg, weights = read_model_config(folder)
    again = export_hf(cfg, weights, tmp_path / 'again/model')
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in again.iterdir()
    }


def test_half_precision_halves_the_file_and_hardly_changes_the_masks(trained, tmp_path):
    cfg, checkpoint = trained
    whole = export_hf(cfg, checkpoint, tmp_path / 'float32')
    half = export_hf(cfg, checkpoint, tmp_path / 'float16', 'float16')
    sizes = [(folder / 'model.safetensors').stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    np.testing.assert_allclose(answer(half)['mask_scores'], answer(whole)['mask_scores'], atol=1e-2)


def test_existing_folder_survives_a_failure(trained, tmp_path):
    cfg, checkpoint = trained
    folder = export_hf(cfg, checkpoint, tmp_path / 'model')
    weights = (folder / 'model.safetensors').read_bytes()
    cfg.model.tokenizer = str(tmp_path / 'nowhere')
    with pytest.raises(Exception, match='nowhere'):
        export_hf(cfg, checkpoint, folder)
    assert (folder / 'model.safetensors').read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir() if 'model' in path.name] == ['model']


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


def test_modules_of_the_user_are_imported(with_own_head, tmp_path):
    cfg, checkpoint, patch = with_own_head
    folder = export_hf(cfg, checkpoint, tmp_path / 'model')
    assert 'import `head_of_mine` first' in (folder / 'README.md').read_text()
    for opened in (folder, folder / 'config.py'):
        forget_head()
        model = init_model(opened, folder / 'model.safetensors', 'cpu')
        assert type(model.mask_head).__name__ == 'HeadOfMine'
    assert answer(folder)['masks'].shape[1:] == (30, 45)
    again = export_hf(model.cfg, folder / 'model.safetensors', tmp_path / 'again')
    forget_head()
    assert type(init_model(again, device='cpu').mask_head).__name__ == 'HeadOfMine'

    forget_head()
    patch.undo()
    with pytest.raises(
        ConfigError,
        match='again/config.py: custom_imports: .*head_of_mine.*No '
        "module named 'head_of_mine'.*PYTHONPATH",
    ):
        init_model(again, device='cpu')


def test_json_alone_imports_nothing(with_own_head, tmp_path):
    """Data runs no code: the module is named, and imported by the user alone."""
    cfg, checkpoint, _ = with_own_head
    folder = export_hf(cfg, checkpoint, tmp_path / 'model')
    (folder / 'config.py').unlink()
    forget_head()
    message = "'HeadOfMine' is not a registered model; import head_of_mine first .*PYTHONPATH"
    with pytest.raises(ConfigError, match=f'config.json.*{message}'):
        init_model(folder, device='cpu')
    assert 'head_of_mine' not in sys.modules
    importlib.import_module('head_of_mine')
    model = init_model(folder, device='cpu')
    again = export_hf(model.cfg, folder / 'model.safetensors', tmp_path / 'again')
    assert 'head_of_mine' in (again / 'config.py').read_text()


def test_pipeline_and_visualizer_of_the_inferencer_are_kept(trained, tmp_path):
    cfg, checkpoint = trained
    cfg.inference_pipeline = [dict(stage) for stage in cfg.test_pipeline]
    cfg.inference_pipeline[3]['max_size'] = 16
    cfg.visualizer = dict(
        type='PixelVisualizer',
        panel_size=(99, 99),
        save_dir=str(tmp_path),
        vis_backends=[dict(type='LocalVisBackend')],
    )
    folder = export_hf(cfg, checkpoint, tmp_path / 'model')
    ask = PixelSAILInferencer(folder, device='cpu')
    assert ask.visualizer.panel_size == (99, 99)
    assert ask.pipeline.stages[3].max_size == 16
    assert str(tmp_path) not in (folder / 'config.py').read_text()
    cfg.visualizer = dict(type='Visualizer')
    assert 'visualizer' not in (export_hf(cfg, checkpoint, folder) / 'config.py').read_text()
    cfg.inference_pipeline = None
    assert not (export_hf(cfg, checkpoint, folder) / 'config.py').exists()


def test_a_config_that_is_no_part_of_an_export_is_not_replaced(trained, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/config.py').write_text('model = None')
    with pytest.raises(ConfigError, match='config.py in it would be lost'):
        export_hf(*trained, tmp_path / 'mine')


def test_one_file_of_weights_knows_its_tokens(trained, tmp_path):
    """Copied elsewhere, without the tokenizer beside it."""
    cfg, checkpoint = trained
    folder = export_hf(cfg, checkpoint, tmp_path / 'model')
    content = load_state((folder / 'model.safetensors').rename(tmp_path / 'alone.safetensors'))
    model = init_model(cfg, checkpoint, 'cpu')
    assert content['meta']['vocabulary'] == vocabulary_metadata(model.tokenizer)['vocabulary']
    assert stored_vocabulary(tmp_path / 'alone.safetensors', content['meta']) is not None
    assert init_model(cfg, tmp_path / 'alone.safetensors', 'cpu').load_report.unexpected == []


def test_a_folder_of_earlier_versions_is_exported(tmp_path):
    (tmp_path / 'old').mkdir()
    old = write_tiny_model(tmp_path / 'old')
    cfg, weights = read_model_config(old)
    new = export_hf(cfg, weights, tmp_path / 'new')
    before, after = answer(old), answer(new)
    assert before['text'] == after['text']
    np.testing.assert_array_equal(before['masks'], after['masks'])


def test_the_card_keeps_its_words(trained, tmp_path):
    folder = export_hf(*trained, tmp_path / 'model')
    card = folder / 'README.md'
    card.write_text(card.read_text().replace('# model', '# Mine') + 'Licence: mine.\n')
    assert '| weights | float32,' in card.read_text()
    export_hf(*trained, folder, 'float16')
    text = card.read_text()
    assert '# Mine' in text and text.endswith('Licence: mine.\n')
    assert '| weights | float16,' in text and 'float32' not in text
    card.write_text('by hand')
    export_hf(*trained, folder)
    assert card.read_text() == 'by hand'
