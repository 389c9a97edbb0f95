"""What the factory decides for a config is in the log, a line each; configs with classes run."""

from itertools import count
from pathlib import Path

from mmengine.config import Config

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import _use_deepspeed, build_runner, build_test_runner

CONFIG = Path(__file__).with_name('toy_config.py')
LAZY = """
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import LoggerHook
from mmengine.optim import AmpOptimWrapper, LinearLR
from torch.optim import SGD

from pixelsail_mm.engine.hooks import OptimStepParamSchedulerHook, PixelCheckpointHook
from pixelsail_mm.engine.loops import PixelTrainLoop
from tests.test_engine.toy_components import ToyDataset, ToyModel

model = dict(type=ToyModel)
train_dataloader = dict(
    batch_size=1, num_workers=0, dataset=dict(type=ToyDataset, length=12),
    sampler=dict(type=DefaultSampler, shuffle=True), collate_fn=dict(type=pseudo_collate))
optim_wrapper = dict(type=AmpOptimWrapper, dtype='bfloat16', optimizer=dict(type=SGD, lr=0.1))
# Warm-up over a part of one step is none.
param_scheduler = [dict(type=LinearLR, start_factor=1e-5, by_epoch=False, begin=0, end=0.02)]
train_cfg = dict(type=PixelTrainLoop, max_iters=3)
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    param_scheduler=dict(type=OptimStepParamSchedulerHook),
    checkpoint=dict(type=PixelCheckpointHook, by_epoch=False, interval=3))
"""
numbers = count()


def named(cfg, work_dir):
    cfg.work_dir, cfg.experiment_name, cfg.launcher = str(work_dir), f'fac{next(numbers)}', 'none'
    return cfg


def log_of(runner):
    [file] = Path(runner.log_dir).glob('*.log')
    return file.read_text()


def test_every_decision_is_a_line_of_the_log(tmp_path):
    cfg = named(read_config(str(CONFIG), ['default_hooks.logger.interval=4']), tmp_path)
    del cfg.default_hooks['bad_steps']
    text = log_of(build_runner(cfg))
    for line in (
        'train_dataloader.sampler: DefaultSampler orders each epoch inside a DrawIndexSampler',
        'log_processor.window_size: losses in the log are means over 4 iterations',
        'strategy: PixelSingleDeviceStrategy (launcher none, deepspeed none)',
        'default_hooks.bad_steps: BadStepHook is added',
        'optim_wrapper: OptimWrapper -> PixelOptimWrapper, which skips steps',
    ):
        assert text.count(line) == 1, line


def test_testing_says_what_it_leaves_out(tmp_path):
    training = build_runner(named(read_config(str(CONFIG), ['train_cfg.max_iters=2']), tmp_path))
    training.train()
    cfg = named(read_config(str(CONFIG)), tmp_path / 'test')
    cfg.model.distill = [1]
    text = log_of(build_test_runner(cfg, tmp_path / 'iter_2.pth'))
    assert text.count('model.distill: left out, experts only teach') == 1


def test_deepspeed_says_what_becomes_of_the_optimizer_wrapper():
    said = []
    cfg = Config(
        dict(
            model=dict(),
            launcher='pytorch',
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(
                type='AmpOptimWrapper',
                dtype='bfloat16',
                optimizer=dict(type='AdamW'),
                accumulative_counts=4,
                clip_grad=dict(max_norm=0.5),
            ),
        )
    )
    _use_deepspeed(cfg, 'zero2', said)
    assert said == [
        'optim_wrapper: AmpOptimWrapper -> PixelDeepSpeedOptimWrapper; precision and '
        "max_norm=0.5 of the gradients are DeepSpeed's (zero2), left out: dtype, "
        'clip_grad'
    ]


def test_a_config_with_classes_runs_as_one_with_names(tmp_path):
    (tmp_path / 'lazy.py').write_text(LAZY)
    cfg = read_config(tmp_path / 'lazy.py')
    assert cfg.model.type == 'ToyModel'
    assert cfg.train_dataloader.collate_fn.type == 'pseudo_collate'
    runner = build_runner(named(cfg, tmp_path / 'work'))
    runner.train()
    assert 'training in float32 (optim_wrapper: AmpOptimWrapper -> OptimWrapper' in log_of(runner)
    assert type(runner.train_loop).__name__ == 'PixelTrainLoop'
    again = read_config(tmp_path / 'work/lazy.py')
    assert again.model.type == 'ToyModel' and again.optim_wrapper.type == 'PixelOptimWrapper'
    swapped = read_config(tmp_path / 'lazy.py', ['optim_wrapper.type=OptimWrapper'])
    assert swapped.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)
    )
