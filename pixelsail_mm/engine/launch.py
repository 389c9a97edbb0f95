"""What ``tools/train.py`` and ``tools/test.py`` do once their arguments are parsed."""

import argparse
import difflib
import os
from pathlib import Path
from typing import List, Optional

from mmengine.config import Config, DictAction

from pixelsail_mm.errors import ConfigError, DivergedError

#: Names the config that a benchmark's config inherits from.
_MODEL_VARIABLE = 'PIXELSAIL_MODEL'
#: Config keys that a run may add on the command line although the file does not have them.
_KNOWN_KEYS = ('auto_scale_lr', 'compile', 'custom_hooks', 'custom_imports', 'deepspeed',
               'default_hooks', 'env_cfg', 'experiment_name', 'load_from', 'log_level',
               'log_processor', 'param_scheduler', 'randomness', 'resume', 'test_cfg',
               'test_dataloader', 'test_evaluator', 'train_cfg', 'val_cfg', 'val_dataloader',
               'val_evaluator', 'visualizer', 'work_dir')


def parse_options(pairs: Optional[List[str]]) -> dict:
    """Read ``key=value`` arguments as MMEngine's ``DictAction`` does.

    Args:
        pairs: E.g. ``['train_cfg.max_iters=20', 'model.distill=[]']``.

    Raises:
        ConfigError: An argument is not of this form.
    """
    for pair in pairs or []:
        if '=' not in pair:
            raise ConfigError(f'--cfg-options {pair}: write key=value')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *pairs] if pairs else []).cfg_options


def read_config(path: str, options: Optional[List[str]] = None) -> Config:
    """Read a config file and apply ``--cfg-options``.

    Args:
        path: The config file.
        options: ``key=value`` strings.

    Raises:
        ConfigError: No such file, or an option whose first key is unknown.
    """
    if not os.path.isfile(path):
        raise ConfigError(f'config {path}: no such file (see configs/ for those that exist)')
    cfg = Config.fromfile(path)
    overrides = parse_options(options)
    known = [*cfg.keys(), *_KNOWN_KEYS]
    for key in overrides:
        head = key.split('.')[0]
        if head not in known:
            close = difflib.get_close_matches(head, known, n=1)
            hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(sorted(known))}'
            raise ConfigError(f'--cfg-options {key}: the config has no key {head!r}; {hint}')
    try:
        cfg.merge_from_dict(overrides)
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(f'--cfg-options {" ".join(options)}: {error}') from error
    return cfg


def train(args: argparse.Namespace) -> None:
    """Train as the arguments of ``tools/train.py`` say.

    Args:
        args: ``config``, ``work_dir``, ``resume`` (False, True or a path), ``deepspeed``,
            ``launcher``, ``cfg_options``, ``seed``.
    """
    from pixelsail_mm.engine.preflight import check_files
    from pixelsail_mm.engine.runner_factory import build_runner
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    if args.deepspeed is not None:
        cfg.deepspeed = None if args.deepspeed == 'none' else args.deepspeed
    if args.resume is not False:
        cfg.resume = args.resume
    if args.seed is not None:
        cfg.setdefault('randomness', dict())['seed'] = args.seed
    check_files(cfg, ('train_dataloader', 'val_dataloader'))
    try:
        build_runner(cfg).train()
    except DivergedError:
        _close_process_group()  # raised in all processes at once
        raise
    _close_process_group()


def test(args: argparse.Namespace) -> dict:
    """Test as the arguments of ``tools/test.py`` say.

    Args:
        args: ``config``, ``checkpoint``, ``model``, ``resume``, ``out``, ``show_dir``,
            ``show_num``, ``work_dir``, ``launcher``, ``cfg_options``, ``seed``.

    Returns:
        dict: The metrics.
    """
    from mmengine.dist import is_main_process

    from pixelsail_mm.engine.preflight import check_files
    from pixelsail_mm.engine.results import show_predictions, write_results
    from pixelsail_mm.engine.runner_factory import build_test_runner
    if args.model is not None:
        choose_model(args.config, args.model)
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    # Where a training starts from need not be here to test what it gave.
    cfg.load_from = None
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    if args.seed is not None:
        cfg.setdefault('randomness', dict())['seed'] = args.seed
    if not os.path.exists(args.checkpoint):
        raise ConfigError(f'checkpoint {args.checkpoint}: no such file')
    check_files(cfg, ('test_dataloader', ))
    if args.show_dir is not None:
        show_predictions(cfg, args.show_dir, args.show_num)
    settings = cfg.to_dict()
    _keep_predictions(cfg, args.checkpoint, args.resume)
    runner = build_test_runner(cfg, args.checkpoint)
    metrics = runner.test()
    if args.out is not None and is_main_process():
        write_results(args.out, runner, metrics, settings, args.config, args.checkpoint)
    _close_process_group()
    return metrics


def is_benchmark(config: str) -> bool:
    """Whether a config file is that of a benchmark: it takes its model from another config."""
    return os.path.isfile(config) and _MODEL_VARIABLE in Path(config).read_text()


def choose_model(config: str, model: str) -> None:
    """Let the config of a benchmark inherit from the config of a model.

    Args:
        config: Config file of the benchmark.
        model: Config file of the model.

    Raises:
        ConfigError: There is no such model, or the config has one of its own.
    """
    if not os.path.isfile(model):
        raise ConfigError(f'--model {model}: no such file (see configs/pixelsail for those that '
                          'exist)')
    if os.path.isfile(config) and not is_benchmark(config):
        raise ConfigError(f'--model: {config} has a model of its own; it is for the configs of '
                          'configs/benchmarks')
    os.environ[_MODEL_VARIABLE] = os.path.abspath(model)


def _keep_predictions(cfg: Config, checkpoint: str, resume: bool) -> None:
    """Make the test loop write predictions, and continue from those that are there."""
    loop = cfg.get('test_cfg') or {}
    if loop.get('type') == 'MultiTestLoop':
        loop['predictions'] = dict(checkpoint=checkpoint, resume=resume)
    elif resume:
        raise ConfigError(f"--resume: test_cfg.type is {loop.get('type')!r}, which keeps no "
                          "predictions; use test_cfg=dict(type='MultiTestLoop')")


def _close_process_group() -> None:
    """Let the processes of a run end together.

    A process that leaves while another still talks to it makes that one abort at exit.
    """
    from torch import distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
