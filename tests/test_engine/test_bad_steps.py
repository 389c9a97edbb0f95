"""NaN and infinity in losses, gradients and weights: steps are skipped, files stay finite."""

import logging
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from mmengine.config import Config
from mmengine.hooks import Hook

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.config import read_config
from pixelsail_mm.engine.hooks.bad_step_hook import BadStepHook
from pixelsail_mm.engine.optim_wrappers import (
    PixelAmpOptimWrapper,
    PixelDeepSpeedOptimWrapper,
    PixelOptimWrapper,
)
from pixelsail_mm.engine.runner_factory import _fit_device, build_runner, build_test_runner
from pixelsail_mm.engine.step_check import LossWatch, Outcome, all_finite
from pixelsail_mm.errors import CheckpointError, DivergedError
from pixelsail_mm.registry import HOOKS

CONFIG = Path(__file__).with_name('toy_config.py')
CLIP = dict(max_norm=1.0)
numbers = count()


@pytest.fixture
def build(tmp_path):
    """Build a runner of the toy that saves after every step and has faults."""

    def build(*faults, work_dir=tmp_path, resume=False, clip=CLIP, hooks=(), **options):
        options = {
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
        } | options
        cfg = read_config(str(CONFIG), [f'{key}={value}' for key, value in options.items()])
        cfg.custom_hooks = [dict(type='FaultHook', faults=list(faults)), *hooks]
        cfg.work_dir, cfg.experiment_name = str(work_dir), f'bad{next(numbers)}'
        cfg.launcher, cfg.resume, cfg.optim_wrapper.clip_grad = 'none', resume, clip
        return build_runner(cfg)

    return build


def weights(folder, iteration):
    state = load_state(folder / f'iter_{iteration}.pth')['state_dict']
    assert all_finite(state.values()), iteration
    return state


def same(folder, first, second):
    first, second = weights(folder, first), weights(folder, second)
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ('kind', 'clip'),
    [
        ('loss', CLIP),
        ('constant', CLIP),
        ('gradient', CLIP),
        ('gradient', dict(type='value', clip_value=1.0)),
        ('gradient', None),
    ],
)
def test_bad_step_leaves_the_weights(build, tmp_path, kind, clip):
    runner = build((2, 0, kind), clip=clip)
    runner.train()
    assert same(tmp_path, 2, 3)
    assert not same(tmp_path, 1, 2) and not same(tmp_path, 3, 4)
    assert all_finite(load_state(tmp_path / 'model.safetensors')['state_dict'].values())
    log = next(tmp_path.glob('*/*.log')).read_text()
    what = 'a gradient (all losses were finite)' if kind == 'gradient' else 'its loss'
    assert f'iteration 3: optimizer step skipped, {what} is NaN or infinite' in log
    [line] = [line for line in log.splitlines() if 'Samples: ' in line]
    sample = line.split('Samples: ')[1].split('.')[0]
    assert sample.isdigit() and ',' not in sample
    assert 'skipped optimizer steps: 1' in log


def test_the_batch_of_the_bad_loss_is_named(build, tmp_path):
    """Of the two micro-batches of a window it is the first, and only it is named."""
    options = {'optim_wrapper.accumulative_counts': 2}
    runner = build((2, 0, 'loss'), **options)
    seen = []
    run_iter = runner.train_loop.run_iter
    runner.train_loop.run_iter = lambda batch: (
        seen.append(batch['data_samples'][0].sample_id),
        run_iter(batch),
    )
    runner.train()
    assert same(tmp_path, 2, 4) and not same(tmp_path, 4, 6)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'Samples: {seen[2]}. ' in log


def test_streak_ends_the_training(build, tmp_path):
    faults = [(1, 0, 'loss'), *((iteration, 0, 'gradient') for iteration in range(3, 9))]
    runner = build(
        *faults,
        **{
            'default_hooks.bad_steps.max_streak': 3,
            'train_cfg.max_iters': 9,
            'default_hooks.checkpoint.max_keep_ckpts': 2,
        },
    )
    with pytest.raises(DivergedError, match='3 optimizer steps in a row.*at iteration 6; 4 in'):
        runner.train()
    assert not (tmp_path / 'model.safetensors').exists()
    assert sorted(path.name for path in tmp_path.glob('iter_*')) == ['iter_4.pth', 'iter_5.pth']
    assert same(tmp_path, 4, 5)


def test_run_without_bad_steps_is_as_it_was(build, tmp_path):
    curves, kinds = [], []
    for name, options in (('checked', {}), ('unchecked', {'default_hooks.bad_steps': 'None'})):
        runner = build(work_dir=tmp_path / name, **options)
        kinds.append(runner.cfg.optim_wrapper.type)
        runner.train()
        curves.append(
            [
                list(runner.message_hub.get_scalar(f'train/{name}').data[0])
                for name in ('loss', 'grad_norm')
            ]
        )
    assert kinds == ['PixelOptimWrapper', 'OptimWrapper']
    assert curves[0] == curves[1] and len(curves[0][0]) == 6
    for key, value in weights(tmp_path / 'checked', 6).items():
        assert torch.equal(value, weights(tmp_path / 'unchecked', 6)[key])


def test_bad_weights_are_neither_saved_nor_exported(build, tmp_path):
    runner = build((3, 0, 'weights'), **{'default_hooks.checkpoint.max_keep_ckpts': 1})
    with pytest.raises(DivergedError, match=r'iter_4\.pth.*layer\.bias'):
        runner.train()
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_3.pth']
    assert weights(tmp_path, 3)
    never_saved = build(
        (3, 0, 'weights'),
        work_dir=tmp_path / 'export',
        **{
            'default_hooks.checkpoint.interval': 100,
            'train_cfg.max_iters': 4,
            'default_hooks.checkpoint.save_last': False,
        },
    )
    with pytest.raises(DivergedError, match=r'model\.safetensors.*layer\.bias'):
        never_saved.train()
    assert not (tmp_path / 'export/model.safetensors').exists()


@HOOKS.register_module()
class ScoreHook(Hook):
    """Give each validation a better score and the model buffers that are infinite on purpose."""

    def before_train(self, runner):
        mask = torch.full((3, 3), float('-inf')).triu(1)
        runner.model.register_buffer('mask', mask, persistent=False)
        runner.model.register_buffer('saved_mask', mask.clone())

    def before_val_epoch(self, runner):
        metric = runner.val_loop.parts[0].evaluator.metrics[0]
        metric.compute_metrics = lambda results: dict(mean=float(runner.iter))


def test_best_checkpoint_is_kept_from_bad_weights(build, tmp_path):
    """And buffers that are infinite on purpose end no training."""
    runner = build(
        (3, 0, 'weights'),
        hooks=[dict(type='ScoreHook')],
        **{
            'default_hooks.checkpoint.interval': 100,
            'default_hooks.checkpoint.save_last': False,
            'default_hooks.checkpoint.save_best': 'a/mean',
            'default_hooks.checkpoint.rule': 'greater',
            'train_cfg.val_interval': 2,
            'train_cfg.val_begin': 1,
        },
    )
    with pytest.raises(DivergedError, match=r'best_.* is not written: 1 weights .*layer\.bias'):
        runner.train()
    [best] = tmp_path.glob('best_*.pth')
    assert best.name.endswith('iter_2.pth')
    state = load_state(best)['state_dict']
    assert not all_finite([state.pop('saved_mask')]) and all_finite(state.values())


def test_bad_checkpoint_is_not_resumed(build, tmp_path):
    build(**{'train_cfg.max_iters': 3}).train()
    path = tmp_path / 'iter_2.pth'
    content = torch.load(path, weights_only=False)
    content['state_dict']['layer.weight'][0, 0] = float('inf')
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r'iter_2\.pth: .*layer\.weight.*earlier'):
        build(resume=str(path)).train()


@pytest.fixture
def scaled(monkeypatch):
    """The mixed-precision wrapper with a real loss scaler on the CPU; MMEngine wants a GPU."""
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    layer = torch.nn.Linear(2, 1, bias=False)

    def make(scale, **options):
        wrapper = PixelAmpOptimWrapper(
            optimizer=torch.optim.SGD(layer.parameters(), lr=0.1), **options
        )
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        return layer, wrapper

    return make


def test_overflow_belongs_to_the_loss_scaler(scaled):
    layer, wrapper = scaled(2.0**125)
    before = layer.weight.detach().clone()
    scales = []
    for _ in range(12):
        wrapper.update_params(1e3 * layer(torch.ones(1, 2)).sum())
        scales.append(wrapper.loss_scaler.get_scale())
        if wrapper.outcome is Outcome.TAKEN:
            break
        assert wrapper.outcome is Outcome.RESCALED and torch.equal(layer.weight, before)
    assert wrapper.outcome is Outcome.TAKEN and len(scales) > 2
    assert scales[0] == 2.0**124 and not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ('scale', 'loss', 'options'),
    [
        (4.0, float('nan'), {}),
        (1.0, float('inf'), {}),
        (1.0, 1.0, {}),
        (4.0, 1.0, dict(loss_scale=4.0)),
    ],
    ids=['nan', 'inf', 'scale 1', 'static scale'],
)
def test_what_no_scale_can_mend_is_skipped(scaled, scale, loss, options):
    layer, wrapper = scaled(scale, **options)
    before = layer.weight.detach().clone()
    for _ in range(2):
        output = layer(torch.ones(1, 2)).sum()
        if loss == 1.0:
            output.register_hook(lambda gradient: gradient * float('inf'))
        wrapper.update_params(output * loss)
        assert wrapper.outcome is Outcome.SKIPPED and torch.equal(layer.weight, before)
        assert wrapper.loss_scaler.get_scale() == scale
    wrapper.update_params(layer(torch.ones(1, 2)).sum())
    assert wrapper.outcome is Outcome.TAKEN and not torch.equal(layer.weight, before)


def test_wrapper_of_a_dumped_config_is_unchecked_too(build, tmp_path):
    """The copy of a config in the work directory names the wrapper that the run used."""
    unchecked = {'default_hooks.bad_steps': 'None'}
    runner = build(**unchecked, **{'optim_wrapper.type': 'PixelOptimWrapper'})
    assert runner.cfg.optim_wrapper.type == 'OptimWrapper'
    dumped = Config.fromfile(str(tmp_path / CONFIG.name))
    assert dumped.default_hooks.bad_steps is None
    dumped.work_dir, dumped.experiment_name = str(tmp_path / 'again'), f'bad{next(numbers)}'
    assert build_runner(dumped).cfg.optim_wrapper.type == 'OptimWrapper'


@pytest.mark.parametrize(
    ('kind', 'fitted'),
    [('AmpOptimWrapper', 'OptimWrapper'), ('PixelAmpOptimWrapper', 'PixelOptimWrapper')],
)
def test_without_gpu_mixed_precision_is_float32(monkeypatch, kind, fitted):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(optim_wrapper=dict(type=kind, dtype='bfloat16', loss_scale='dynamic')))
    said = []
    _fit_device(cfg, said)
    assert cfg.optim_wrapper == dict(type=fitted)
    assert said == [
        f'no CUDA device: training in float32 (optim_wrapper: {kind} -> {fitted}, '
        'without dtype, loss_scale)'
    ]


def test_hook_that_is_turned_off_does_not_end_testing(build, tmp_path):
    build().train()
    cfg = read_config(str(CONFIG), ['default_hooks.bad_steps=None', 'default_hooks.logger=None'])
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'test'), f'bad{next(numbers)}'
    cfg.launcher = 'none'
    assert build_test_runner(cfg, str(tmp_path / 'model.safetensors')).test()


def test_norm_that_overflows_is_not_the_scalers(scaled):
    """The gradients are finite at any scale, so lowering it would go on for ever."""
    layer, wrapper = scaled(4.0, clip_grad=CLIP)
    before = layer.weight.detach().clone()
    for _ in range(2):
        output = layer(torch.ones(1, 2)).sum()
        output.register_hook(lambda gradient: gradient * 2e20)
        wrapper.update_params(output)
        assert wrapper.outcome is Outcome.SKIPPED and torch.equal(layer.weight, before)
        assert wrapper.loss_scaler.get_scale() == 4.0


def test_value_clipping_does_not_hide_infinity():
    """Gradients that are infinite and nowhere NaN: clipped, they would be the clip value."""
    layer = torch.nn.Linear(2, 1, bias=False)
    wrapper = PixelOptimWrapper(
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.1),
        clip_grad=dict(type='value', clip_value=1.0),
    )
    before = layer.weight.detach().clone()
    output = layer(torch.ones(1, 2)).sum()
    output.register_hook(lambda gradient: gradient * float('inf'))
    wrapper.update_params(output)
    assert wrapper.outcome is Outcome.SKIPPED and torch.equal(layer.weight, before)


def test_model_that_steps_by_itself_has_its_gradients_checked():
    """Its own `train_step` may call `backward` and `step`, which show no loss."""
    layer = torch.nn.Linear(2, 1, bias=False)
    wrapper = PixelOptimWrapper(optimizer=torch.optim.SGD(layer.parameters(), lr=0.1))
    for factor, outcome in (
        (1.0, Outcome.TAKEN),
        (float('inf'), Outcome.SKIPPED),
        (1.0, Outcome.TAKEN),
    ):
        before = layer.weight.detach().clone()
        wrapper.backward(layer(torch.ones(1, 2)).sum() * factor)
        assert wrapper.outcome is None
        wrapper.step()
        assert wrapper.outcome is outcome
        assert torch.equal(layer.weight, before) is (outcome is Outcome.SKIPPED)
        wrapper.zero_grad()


def test_losses_of_the_last_window_do_not_count_twice():
    watch = LossWatch()
    assert watch.close()
    watch.see(torch.tensor(float('nan')))
    assert not watch.close() and len(watch.finite) == 1
    assert watch.close() and watch.finite == []


def hook_of(outcomes, hook, caplog):
    """Show outcomes to a hook; give the messages."""
    wrapper = SimpleNamespace(losses=SimpleNamespace(finite=[torch.tensor(True)]), bad_state=False)
    runner = SimpleNamespace(optim_wrapper=wrapper, logger=logging.getLogger('bad'))
    caplog.set_level('INFO', 'bad')
    for index, outcome in enumerate(outcomes):
        wrapper.outcome = outcome
        hook.after_train_iter(runner, index)
    return [record.getMessage() for record in caplog.records]


def test_first_rescaled_step_of_a_streak_is_logged(caplog):
    hook = BadStepHook(max_streak=1, max_files=0)
    outcomes = [Outcome.RESCALED] * 3 + [Outcome.TAKEN, None, Outcome.RESCALED]
    lines = hook_of(outcomes, hook, caplog)
    assert [line.split(':')[0] for line in lines] == ['iteration 1', 'iteration 6']
    assert 'loss scaler lowers its scale' in lines[0] and hook.rescaled == 4
    with pytest.raises(DivergedError, match='1 in this run, 4 more dropped by the loss scaler'):
        hook_of([Outcome.SKIPPED], hook, caplog)


def test_hook_keeps_nothing_of_an_unchecked_run():
    hook = BadStepHook()
    for index in range(3):
        hook.after_train_iter(
            SimpleNamespace(optim_wrapper=object()), index, dict(data_samples=[dict(sample_id='a')])
        )
    assert hook._window == []


class StubOptimizer:
    """Stands in for ZeRO's float16 optimizer, which needs a GPU; the scaler is DeepSpeed's own."""

    dtype, dynamic_loss_scale, check_grad_overflow, bad = torch.float16, True, False, False
    state: dict = {}

    def __init__(self, **scaler):
        self.optimizer = self  # ZeRO's holds PyTorch's
        self.loss_scaler = DynamicLossScaler(
            scale_window=1000, delayed_shift=1, consecutive_hysteresis=False, **scaler
        )

    @property
    def loss_scale(self):
        return self.loss_scaler.cur_scale

    def has_overflow(self):
        return self.bad

    def step(self):
        self.overflow = self.has_overflow()
        self.loss_scaler.update_scale(self.overflow)


@pytest.mark.parametrize(
    ('scale', 'lowest', 'loss', 'outcome', 'after'),
    [
        (8.0, 1.0, float('nan'), Outcome.SKIPPED, 8.0),
        (8.0, 1.0, 1.0, Outcome.RESCALED, 4.0),
        (1.0, 1.0, 1.0, Outcome.SKIPPED, 1.0),
        (8.0, 8.0, 1.0, Outcome.SKIPPED, 8.0),
    ],
)
def test_float16_of_deepspeed_counts_at_its_lowest_scale(
    monkeypatch, scale, lowest, loss, outcome, after
):
    monkeypatch.setattr('deepspeed.runtime.fp16.loss_scaler.dist.get_rank', lambda: 0)
    optimizer = StubOptimizer(init_scale=scale, min_scale=lowest)
    optimizer.bad = True
    wrapper = PixelDeepSpeedOptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))
    wrapper.model = SimpleNamespace(
        optimizer=optimizer,
        step=optimizer.step,
        backward=lambda loss: None,
        set_gradient_accumulation_boundary=lambda steps: None,
        get_global_grad_norm=lambda: None,
    )
    for _ in range(2 if outcome is Outcome.SKIPPED else 1):
        wrapper.update_params(torch.tensor(loss))
        assert wrapper.outcome is outcome and optimizer.loss_scale == after
