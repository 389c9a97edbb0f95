"""Run training and testing for ``tools/train.py`` and ``tools/test.py``."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from mmengine.config import Config

from pixelsail_mm.compat.allocator import keep_freed_memory
from pixelsail_mm.config import read_config
from pixelsail_mm.errors import STOPPED, ConfigError, DivergedError, NotSavedError, StoppedError
from pixelsail_mm.type_names import type_name


def train(args: argparse.Namespace) -> None:
    """Train as the arguments of ``tools/train.py`` say.

    Args:
        args: ``config``, ``work_dir``, ``resume`` (False, True or a path), ``deepspeed``,
            ``launcher``, ``cfg_options``, ``seed``.
    """
    from pixelsail_mm.engine.preflight import check_files
    from pixelsail_mm.engine.runner_factory import build_runner, set_work_dir
    from pixelsail_mm.engine.stop_signals import REQUEST
    from pixelsail_mm.engine.strategies.common import rank_of
    from pixelsail_mm.engine.work_dir_lock import work_dir_lock

    cfg = _read(args)
    if args.deepspeed is not None:
        cfg.deepspeed = None if args.deepspeed == 'none' else args.deepspeed
    if args.resume is not False:
        cfg.resume = args.resume
    set_work_dir(cfg)
    check_files(cfg, ('train_dataloader', 'val_dataloader'))
    main_process = rank_of(args.launcher) == 0
    owned = work_dir_lock(cfg.work_dir) if main_process else contextlib.nullcontext()
    with REQUEST.listening(), _watched(cfg), owned:
        try:
            build_runner(cfg).train()
        except (DivergedError, NotSavedError, StoppedError) as error:
            _close_process_group()  # raised in all processes at once
            if isinstance(error, StoppedError) and not main_process:
                sys.exit(STOPPED)  # it is the same message
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

    cfg = _read(args, args.model)
    # Where a training starts from need not be here to test what it gave.
    cfg.load_from = None
    if not os.path.exists(args.checkpoint):
        raise ConfigError(f'checkpoint {args.checkpoint}: no such file')
    check_files(cfg, ('test_dataloader',))
    if args.show_dir is not None:
        show_predictions(cfg, args.show_dir, args.show_num)
    settings = cfg.to_dict()
    _keep_predictions(cfg, args.checkpoint, args.resume)
    with _watched(cfg):
        runner = build_test_runner(cfg, args.checkpoint)
        metrics = runner.test()
        if args.out is not None and is_main_process():
            write_results(args.out, runner, metrics, settings, args.config, args.checkpoint)
        _close_process_group()
    return metrics


def _read(args: argparse.Namespace, model: str | None = None) -> Config:
    """The config, with what both commands take from the command line."""
    keep_freed_memory()
    cfg = read_config(args.config, args.cfg_options, model)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    if args.seed is not None:
        cfg.setdefault('randomness', dict())['seed'] = args.seed
    return cfg


@contextlib.contextmanager
def _watched(cfg: Config) -> Iterator[None]:
    """Watch this process, and end it with the launcher that started it."""
    from pixelsail_mm.engine import watchdog
    from pixelsail_mm.engine.process_ties import end_with_parent
    from pixelsail_mm.engine.strategies.common import rank_of

    if cfg.launcher != 'none':
        end_with_parent(signal.SIGTERM)
    limits = (cfg.get('default_hooks') or {}).get('watchdog')
    if not limits:
        yield
        return
    limits = {key: value for key, value in limits.items() if key in watchdog.STAGES}
    with watchdog.watching(limits, rank_of(cfg.launcher)):
        yield


def _keep_predictions(cfg: Config, checkpoint: str, resume: bool) -> None:
    """Make the test loop write predictions, and continue from those that are there."""
    loop = cfg.get('test_cfg') or {}
    if type_name(loop.get('type')) == 'MultiTestLoop':
        loop['predictions'] = dict(checkpoint=checkpoint, resume=resume)
    elif resume:
        raise ConfigError(
            f'--resume: test_cfg.type is {loop.get("type")!r}, which keeps no '
            "predictions; use test_cfg=dict(type='MultiTestLoop')"
        )


def _close_process_group() -> None:
    """Let the processes of a run end together.

    A process that leaves while another still talks to it makes that one abort at exit.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
