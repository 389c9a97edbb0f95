"""From a config to MMEngine's ``FlexibleRunner``, with this package's strategies and loops."""

from pathlib import Path
from typing import Optional

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from pixelsail_mm.checkpoints.formats.checkpoint_files import find_resumable, verify_checkpoint
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import SCOPE

_TRAIN_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
_VAL_KEYS = ('val_dataloader', 'val_cfg', 'val_evaluator')


def _cuda_available() -> bool:
    import torch
    return torch.cuda.is_available()


def _fit_device(cfg: Config) -> None:
    """Run a config written for a GPU in float32 where there is none (bfloat16 is very slow)."""
    wrapper = cfg.get('optim_wrapper') or {}
    kind = wrapper.get('type')
    if kind in ('AmpOptimWrapper', 'PixelAmpOptimWrapper') and not _cuda_available():
        wrapper['type'] = kind.replace('Amp', '')
        print_log(f'no CUDA device: training in float32 ({kind} -> {wrapper["type"]})',
                  logger='current')
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)


def _wrap_sampler(cfg: Config) -> None:
    """Put the config's sampler into a ``DrawIndexSampler``, which resumes and counts draws."""
    loader = cfg.train_dataloader
    sampler = loader.get('sampler') or dict(type='DefaultSampler', shuffle=True)
    if sampler.get('type') != 'DrawIndexSampler':
        sampler = dict(type='DrawIndexSampler', sampler=sampler)
    sampler['batch_size'] = loader.get('batch_size', 1)
    loader.sampler = sampler


def _set_log_window(cfg: Config) -> None:
    """Average the logged losses over at least one accumulation window."""
    processor = cfg.setdefault('log_processor', dict(by_epoch=False))
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    interval = logger.get('interval', 10)
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    processor['window_size'] = max(processor.get('window_size', interval), accumulation)


def _use_deepspeed(cfg: Config, name: str) -> dict:
    """Translate the optimizer settings to DeepSpeed's; give the strategy's config."""
    from pixelsail_mm.engine.strategies.deepspeed import adapt, ensure_rank_variables, read_preset
    preset = read_preset(name)
    if (preset.get('zero_optimization', {}).get('stage') == 3
            and cfg.model.get('backbone', {}).get('quantization')):
        raise ConfigError(f'--deepspeed {name}: ZeRO-3 would cut up the 4-bit weights of '
                          'model.backbone.quantization; use zero2')
    if cfg.launcher == 'none':
        ensure_rank_variables()
        cfg.launcher = 'pytorch'
    wrapper = cfg.optim_wrapper
    accumulation = wrapper.get('accumulative_counts', 1)
    clip = (wrapper.get('clip_grad') or {}).get('max_norm', 0)
    config = adapt(preset, cfg.train_dataloader.get('batch_size', 1), accumulation, clip)
    kept = {key: wrapper[key] for key in ('optimizer', 'constructor', 'paramwise_cfg')
            if key in wrapper}
    cfg.optim_wrapper = dict(type='PixelDeepSpeedOptimWrapper', accumulative_counts=accumulation,
                             **kept)
    return dict(type=f'{SCOPE}.PixelDeepSpeedStrategy', config=config,
                gradient_accumulation_steps=accumulation)


def _choose_strategy(cfg: Config, deepspeed: Optional[str]) -> dict:
    if deepspeed:
        return _use_deepspeed(cfg, deepspeed)
    name = 'PixelSingleDeviceStrategy' if cfg.launcher == 'none' else 'PixelDDPStrategy'
    return dict(type=f'{SCOPE}.{name}')


def _check_steps(cfg: Config) -> None:
    """Use the optimizer wrapper that skips bad steps, unless ``default_hooks.bad_steps`` is None.

    Configs that do not name the hook get it, too: a skipped step must not go unreported. With None
    the wrappers that skip are replaced by MMEngine's; a dumped config names them.
    """
    hook = cfg.setdefault('default_hooks', dict()).setdefault(
        'bad_steps', dict(type='BadStepHook'))
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind == 'PixelDeepSpeedOptimWrapper':
        wrapper['check_steps'] = hook is not None
        return
    other = {f'Pixel{name}': name for name in ('OptimWrapper', 'AmpOptimWrapper')}
    if hook is not None:
        other = {name: checked for checked, name in other.items()}
    if kind in other:
        wrapper['type'] = other[kind]


def _settle_resume(cfg: Config) -> None:
    """Turn ``resume=True`` into the newest complete checkpoint of the work directory."""
    if isinstance(cfg.get('resume'), str):
        verify_checkpoint(cfg.resume)
    elif cfg.get('resume'):
        cfg.resume = find_resumable(cfg.work_dir) or False
        if not cfg.resume:
            print_log(f'--resume: no checkpoint in {cfg.work_dir}; starting from the beginning',
                      logger='current', level=30)


def _set_defaults(cfg: Config) -> None:
    cfg.setdefault('launcher', 'none')
    cfg.setdefault('default_scope', SCOPE)
    cfg.setdefault('env_cfg', dict())
    cfg.setdefault('randomness', dict(seed=0))
    if cfg.get('work_dir') is None:
        stem = Path(cfg.filename).stem if cfg.filename else 'unnamed'
        cfg.work_dir = str(Path('work_dirs') / stem)
    if cfg.get('model') is None:
        raise ConfigError('the config has no `model`')


def build_runner(cfg: Config, weights: Optional[str] = None):
    """Build a training runner; ``runner.train()`` starts.

    Keys read here, besides those of MMEngine's runner: ``deepspeed`` (a preset name or JSON path,
    see :func:`pixelsail_mm.engine.strategies.deepspeed.read_preset`), ``load_from`` (weights to
    start from, in any format of :func:`pixelsail_mm.checkpoints.checkpoint.load_state`) and
    ``resume`` (True for the newest complete checkpoint in ``work_dir``, or a path).

    Args:
        cfg: The config; it is changed.
        weights: Overrides ``load_from``.

    Returns:
        PixelRunner: The runner.

    Raises:
        ConfigError: A key is missing or contradicts another.
        CheckpointError: The checkpoint to resume from is unusable.
    """
    from pixelsail_mm.engine.resuming import PixelRunner
    _set_defaults(cfg)
    init_default_scope(cfg.default_scope)
    for key in _TRAIN_KEYS[:3]:
        if cfg.get(key) is None:
            raise ConfigError(f'training needs `{key}` in the config')
    _fit_device(cfg)
    _wrap_sampler(cfg)
    _set_log_window(cfg)
    _settle_resume(cfg)
    strategy = _choose_strategy(cfg, cfg.get('deepspeed'))
    _check_steps(cfg)
    start = weights or cfg.get('load_from')
    if start is not None and not cfg.get('resume'):
        strategy.update(weights=start, required_prefixes=[])
    cfg.load_from = None
    cfg.strategy = strategy
    return PixelRunner.from_cfg(cfg)


def build_test_runner(cfg: Config, checkpoint: str):
    """Build a runner for ``runner.test()`` with a checkpoint's weights.

    Args:
        cfg: The config; it is changed: what only training needs is dropped.
        checkpoint: Anything :func:`pixelsail_mm.checkpoints.checkpoint.load_state` reads; it
            must hold every weight that prediction uses.

    Returns:
        HooksOffRunner: The runner.

    Raises:
        ConfigError: The config names no test data.
    """
    from pixelsail_mm.engine.default_hooks import HooksOffRunner
    _set_defaults(cfg)
    init_default_scope(cfg.default_scope)
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ConfigError(f'testing needs `{key}` in the config')
    for key in _TRAIN_KEYS + _VAL_KEYS:
        cfg[key] = None
    if cfg.model.get('distill'):
        # Experts teach; testing must not need their weights or feature files.
        cfg.model.distill = []
    cfg.load_from, cfg.resume = None, False
    cfg.strategy = dict(_choose_strategy(cfg, None), weights=str(checkpoint))
    return HooksOffRunner.from_cfg(cfg)
