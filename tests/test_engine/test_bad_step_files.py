"""What a skipped step leaves behind, and evaluations with NaN in them."""

import json

import pytest
import torch
from mmengine.hooks import Hook

from pixelsail_mm.engine import bad_step_files
from pixelsail_mm.engine.hooks.bad_predictions import fields_not_finite
from pixelsail_mm.models.generation import STATES_NOT_FINITE
from pixelsail_mm.registry import HOOKS, MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.testing.tiny_models import byte_tokenizer, collate, make_sample, tiny_model_config
from tests.test_engine.test_bad_steps import build, weights  # noqa: F401


def log_of(folder):
    return next(folder.glob('*/*.log')).read_text()


def test_file_holds_samples_losses_and_learning_rate(build, tmp_path):  # noqa: F811
    """Of the two micro-batches of the window the first one is bad."""
    build((2, 0, 'loss'), **{'optim_wrapper.accumulative_counts': 2}).train()
    [path] = (tmp_path / 'bad_steps').iterdir()
    assert path.name == 'iter_4_rank_0.json' and f'Written to {path}' in log_of(tmp_path)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    first, second = content['micro_batches']
    assert [first['loss_is_finite'], second['loss_is_finite']] == [False, True]
    assert first['losses']['loss_lm'] == first['losses']['loss'] == 'nan'
    assert second['losses']['loss_lm'] > 0 and second['losses']['loss_noise'] >= 0
    assert first['samples'][0]['dataset'] == 'toy' and first['samples'][0]['sample_id'].isdigit()
    [rate] = content['learning_rates']['lr']
    assert 0 < rate < 1e-2 and content['grad_norm'] == 'nan'
    assert content['iteration'] == 4 and content['skipped_in_a_row'] == 1
    assert 'its loss is NaN' in content['cause']


def test_number_of_files_is_bounded(build, tmp_path):  # noqa: F811
    faults = [(iteration, 0, 'gradient') for iteration in (0, 2, 4)]
    build(*faults, **{'default_hooks.bad_steps.max_files': 2}).train()
    assert len(list((tmp_path / 'bad_steps').iterdir())) == 2
    assert 'nowhere' in log_of(tmp_path) and 'has 2 files of process 0' in log_of(tmp_path)


def test_file_that_cannot_be_written_ends_no_training(build, tmp_path):  # noqa: F811
    (tmp_path / 'bad_steps').write_text('in the way')
    build((2, 0, 'loss')).train()
    assert (tmp_path / 'model.safetensors').is_file()
    assert 'cannot be written' in log_of(tmp_path)


def test_no_files_on_demand(build, tmp_path):  # noqa: F811
    build((2, 0, 'loss'), **{'default_hooks.bad_steps.max_files': 0}).train()
    assert not (tmp_path / 'bad_steps').exists() and 'Written to' not in log_of(tmp_path)


def test_losses_are_kept_without_their_graph():
    weight = torch.ones(1, requires_grad=True)
    kept = bad_step_files.micro_batch(dict(data_samples=[dict(sample_id=3)]), dict(loss=weight * 2))
    assert not kept['losses']['loss'].requires_grad and bad_step_files.sample_ids(kept) == ['3']


@HOOKS.register_module()
class NanInValidationHook(Hook):
    """Make a prediction and a metric of each validation NaN."""

    priority = 'HIGHEST'

    def before_val(self, runner):
        metric = runner.val_loop.parts[0].evaluator.metrics[0]
        metric.compute_metrics = lambda results: dict(mean=float('nan'), count=len(results))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 1:
            outputs[0].pred_score = float('nan')


def test_training_goes_on_after_nan_in_a_validation(build, tmp_path):  # noqa: F811
    options = {'train_cfg.val_interval': 3, 'train_cfg.val_begin': 1}
    hooks = [dict(type='NanInValidationHook')]
    build(hooks=hooks, work_dir=tmp_path / 'nan', **options).train()
    build(work_dir=tmp_path / 'other', **options).train()
    for step in (3, 6):  # by no bit does it change the training
        left, right = (weights(tmp_path / name, step) for name in ('nan', 'other'))
        assert all(torch.equal(value, right[key]) for key, value in left.items())
    lines = [line for line in log_of(tmp_path / 'nan').splitlines() if 'NaN or infinite' in line]
    assert len(lines) == 2 and 'validation at iteration 3: NaN or infinite: ' in lines[0]
    assert 'predictions of 2 samples (a/2 (pred_score), b/1 (pred_score))' in lines[0]
    assert 'metric a/mean' in lines[0] and 'metric b/mean' not in lines[0]
    assert 'NaN or infinite' not in log_of(tmp_path / 'other')


def test_predictions_that_are_not_finite_are_found():
    sample = PixelDataSample()
    sample.pred_masks, sample.pred_text = torch.ones(1, 2, 2, dtype=torch.bool), 'nan'
    sample.pred_scores, sample.gt_boxes = torch.ones(2), torch.full((1, 4), float('nan'))
    assert fields_not_finite(sample) == []
    sample.pred_scores[1] = float('inf')
    assert fields_not_finite(sample) == ['pred_scores']


def test_answer_from_states_that_are_nan_says_so():
    """Its text is an empty or a usual one, and it has no masks: nothing else shows it."""
    tokenizer = byte_tokenizer()
    model = MODELS.build(tiny_model_config(tokenizer)).eval()
    batch = collate([make_sample(model.tokens, grid) for grid in ((2, 2), None)])
    for sample in model.val_step(batch):
        assert fields_not_finite(sample) == [] and STATES_NOT_FINITE not in sample
    with torch.no_grad():
        next(model.backbone.patch_embed.parameters()).fill_(float('nan'))
    bad, good = model.val_step(batch)
    assert STATES_NOT_FINITE in fields_not_finite(bad)
    assert fields_not_finite(good) == []
