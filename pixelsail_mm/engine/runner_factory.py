"""From a config to MMEngine's ``FlexibleRunner``, with this package's strategies and loops."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner

from pixelsail_mm.engine.default_hooks import HooksOffRunner
from pixelsail_mm.engine.resume_choice import choose_checkpoint
from pixelsail_mm.engine.resuming import PixelRunner
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import SCOPE
from pixelsail_mm.type_names import name_types, type_name

_TRAIN_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
_VAL_KEYS = ('val_dataloader', 'val_cfg', 'val_evaluator')


def _fit_device(cfg: Config, said: list[str]) -> None:
    """Run a config written for a GPU in float32 where there is none (bfloat16 is very slow)."""
    wrapper = cfg.get('optim_wrapper') or {}
    kind = type_name(wrapper.get('type'))
    if kind in ('AmpOptimWrapper', 'PixelAmpOptimWrapper') and not torch.cuda.is_available():
        wrapper['type'] = kind.replace('Amp', '')
        gone = [
            key for key in ('dtype', 'loss_scale', 'use_fsdp') if wrapper.pop(key, None) is not None
        ]
        said.append(
            f'no CUDA device: training in float32 (optim_wrapper: {kind} -> '
            f'{wrapper["type"]}{", without " if gone else ""}{", ".join(gone)})'
        )


def _wrap_sampler(cfg: Config, said: list[str]) -> None:
    """Put the config's sampler into a ``DrawIndexSampler``, which resumes and counts draws."""
    loader = cfg.train_dataloader
    sampler = loader.get('sampler') or dict(type='DefaultSampler', shuffle=True)
    if type_name(sampler.get('type')) != 'DrawIndexSampler':
        said.append(
            f'train_dataloader.sampler: {type_name(sampler["type"])} orders each epoch '
            'inside a DrawIndexSampler, which numbers the draws and resumes at any'
        )
        sampler = dict(type='DrawIndexSampler', sampler=sampler)
    sampler['batch_size'] = loader.get('batch_size', 1)
    loader.sampler = sampler


def _set_log_window(cfg: Config, said: list[str]) -> None:
    """Average the logged losses over at least one accumulation window."""
    processor = cfg.setdefault('log_processor', dict(by_epoch=False))
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    interval = logger.get('interval', 10)
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    window = max(processor.get('window_size', interval), accumulation)
    if processor.get('window_size') != window:
        said.append(
            f'log_processor.window_size: losses in the log are means over {window} '
            f'iterations (logger.interval {interval}, accumulative_counts {accumulation})'
        )
    processor['window_size'] = window


def _use_deepspeed(cfg: Config, name: str, said: list[str]) -> dict:
    """Translate the optimizer settings to DeepSpeed's; give the strategy's config."""
    from pixelsail_mm.engine.strategies.deepspeed import adapt, ensure_rank_variables, read_preset

    preset = read_preset(name)
    if preset.get('zero_optimization', {}).get('stage') == 3 and cfg.model.get('backbone', {}).get(
        'quantization'
    ):
        raise ConfigError(
            f'--deepspeed {name}: ZeRO-3 would cut up the 4-bit weights of '
            'model.backbone.quantization; use zero2'
        )
    if cfg.launcher == 'none':
        ensure_rank_variables()
        cfg.launcher = 'pytorch'
    wrapper = cfg.optim_wrapper
    accumulation = wrapper.get('accumulative_counts', 1)
    clip = (wrapper.get('clip_grad') or {}).get('max_norm', 0)
    config = adapt(preset, cfg.train_dataloader.get('batch_size', 1), accumulation, clip)
    kept = {
        key: wrapper[key] for key in ('optimizer', 'constructor', 'paramwise_cfg') if key in wrapper
    }
    gone = [key for key in wrapper if key not in ('type', 'accumulative_counts', *kept)]
    said.append(
        f'optim_wrapper: {type_name(wrapper.get("type", "OptimWrapper"))} -> '
        f'PixelDeepSpeedOptimWrapper; precision and max_norm={clip} of the gradients are '
        f"DeepSpeed's ({name}){', left out: ' if gone else ''}{', '.join(gone)}"
    )
    cfg.optim_wrapper = dict(
        type='PixelDeepSpeedOptimWrapper', accumulative_counts=accumulation, **kept
    )
    return dict(
        type=f'{SCOPE}.PixelDeepSpeedStrategy',
        config=config,
        gradient_accumulation_steps=accumulation,
    )


def _choose_strategy(cfg: Config, deepspeed: str | None, said: list[str]) -> dict:
    launcher = cfg.launcher
    if deepspeed:
        strategy = _use_deepspeed(cfg, deepspeed, said)
    else:
        name = 'PixelSingleDeviceStrategy' if launcher == 'none' else 'PixelDDPStrategy'
        strategy = dict(type=f'{SCOPE}.{name}')
    said.append(
        f'strategy: {type_name(strategy["type"])} (launcher {launcher}, deepspeed '
        f'{deepspeed or "none"})'
    )
    return strategy


def _check_steps(cfg: Config, said: list[str]) -> None:
    """Use the optimizer wrapper that skips bad steps, unless ``default_hooks.bad_steps`` is None.

    Configs that do not name the hook get it, too: a skipped step must not go unreported. With None
    the wrappers that skip are replaced by MMEngine's; a dumped config names them.
    """
    hooks = cfg.setdefault('default_hooks', dict())
    if 'bad_steps' not in hooks:
        hooks['bad_steps'] = dict(type='BadStepHook')
        said.append('default_hooks.bad_steps: BadStepHook is added; None leaves it out')
    hook = hooks['bad_steps']
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper.get('type', 'OptimWrapper'))
    if kind == 'PixelDeepSpeedOptimWrapper':
        wrapper['check_steps'] = hook is not None
        return
    other = {f'Pixel{name}': name for name in ('OptimWrapper', 'AmpOptimWrapper')}
    if hook is not None:
        other = {name: checked for checked, name in other.items()}
    if kind in other:
        wrapper['type'] = other[kind]
        what = 'does not skip' if hook is None else 'skips'
        said.append(
            f'optim_wrapper: {kind} -> {other[kind]}, which {what} steps with NaN or '
            'infinity (default_hooks.bad_steps)'
        )


def _settle_resume(runner: FlexibleRunner, resume: bool | str | None, start: str | None) -> None:
    """Turn ``resume=True`` into the newest complete checkpoint; it has weights of its own."""
    found = choose_checkpoint(resume, runner.work_dir)
    runner._resume = found or False
    if found and start is not None:
        runner.strategy.forget_weights()
        runner.logger.info(f'load_from: {start} is not read, {found} has the weights')


def set_work_dir(cfg: Config) -> None:
    """Give a config without ``work_dir`` the folder ``work_dirs/NAME_OF_CONFIG``.

    Args:
        cfg: The config; it is changed.
    """
    if cfg.get('work_dir') is None:
        stem = Path(cfg.filename).stem if cfg.filename else 'unnamed'
        cfg.work_dir = str(Path('work_dirs') / stem)


def _set_defaults(cfg: Config) -> None:
    """Fill in what configs usually leave to ``_base_/default_runtime.py`` and the command line."""
    name_types(cfg)
    cfg.setdefault('launcher', 'none')
    cfg.setdefault('default_scope', SCOPE)
    cfg.setdefault('env_cfg', dict())
    cfg.setdefault('randomness', dict(seed=0))
    set_work_dir(cfg)
    if cfg.get('model') is None:
        raise ConfigError('the config has no `model`')


def build_runner(cfg: Config) -> PixelRunner:
    """Build a training runner; ``runner.train()`` starts.

    Keys read here, besides those of MMEngine's runner: ``deepspeed`` (a preset name or JSON path,
    see :func:`pixelsail_mm.engine.strategies.deepspeed.read_preset`), ``load_from`` (weights to
    start from, in any format of :func:`pixelsail_mm.checkpoints.checkpoint.load_state`) and
    ``resume`` (True for the newest complete checkpoint in ``work_dir``, or a path).

    Args:
        cfg: The config; it is changed.

    Raises:
        ConfigError: A key is missing or contradicts another.
        CheckpointError: The checkpoint to resume from is unusable.
    """
    _set_defaults(cfg)
    init_default_scope(cfg.default_scope)
    for key in _TRAIN_KEYS[:3]:
        if cfg.get(key) is None:
            raise ConfigError(f'training needs `{key}` in the config')
    said: list[str] = []
    _fit_device(cfg, said)
    _wrap_sampler(cfg, said)
    _set_log_window(cfg, said)
    strategy = _choose_strategy(cfg, cfg.get('deepspeed'), said)
    _check_steps(cfg, said)
    start = cfg.get('load_from')
    if start is not None:
        strategy.update(weights=start, required_prefixes=[])
    cfg.load_from = None
    cfg.strategy = strategy
    runner = _say(PixelRunner.from_cfg(cfg), said)
    _settle_resume(runner, cfg.get('resume'), start)
    return runner


def build_test_runner(cfg: Config, checkpoint: str) -> HooksOffRunner:
    """Build a runner for ``runner.test()`` with a checkpoint's weights.

    Args:
        cfg: The config; it is changed: what only training needs is dropped.
        checkpoint: Anything :func:`pixelsail_mm.checkpoints.checkpoint.load_state` reads; it
            must hold every weight that prediction uses.

    Raises:
        ConfigError: The config names no test data.
    """
    _set_defaults(cfg)
    init_default_scope(cfg.default_scope)
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ConfigError(f'testing needs `{key}` in the config')
    said: list[str] = []
    for key in _TRAIN_KEYS + _VAL_KEYS:
        cfg[key] = None
    if cfg.model.get('distill'):
        # Testing must not need the experts' weights or feature files.
        cfg.model.distill = []
        said.append('model.distill: left out, experts only teach')
    cfg.load_from, cfg.resume = None, False
    cfg.strategy = dict(_choose_strategy(cfg, None, said), weights=str(checkpoint))
    return _say(HooksOffRunner.from_cfg(cfg), said)


def _say(runner: FlexibleRunner, said: list[str]) -> FlexibleRunner:
    """Write what was decided for the config into the run's log, a line each."""
    for line in said:
        runner.logger.info(line)
    return runner
