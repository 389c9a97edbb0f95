"""How long a training waits for a checkpoint, with MMEngine's way of writing and with ours."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch
from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import nn

from pixelsail_mm.checkpoints.formats.checkpoint_files import remove, size_on_disk
from pixelsail_mm.registry import SCOPE, STRATEGIES

#: ``mmengine`` writes as MMEngine (and its DeepSpeed) does, in place, without flushing to the disk.
WAYS = ('mmengine', 'at once', 'in a thread')


class Layers(BaseModel):
    """Square layers of random weights.

    Args:
        layers: Their number.
        width: Their size; ``layers * width ** 2`` weights.
    """

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, inputs, data_samples=None, mode='loss'):
        """Give the loss."""
        states = inputs
        for layer in self.layers:
            states = states + layer(states).tanh()
        return dict(loss=states.square().mean())


def build_strategy(model: nn.Module, deepspeed: str | None, launcher: str, folder: Path):
    """Make a strategy that trains a model with AdamW.

    Args:
        model: The model.
        deepspeed: A preset, or None for plain PyTorch.
        launcher: ``none`` or ``pytorch``.
        folder: Where it may write.
    """
    init_default_scope(SCOPE)
    optimizer = dict(type='AdamW', lr=1e-4)
    if deepspeed:
        from pixelsail_mm.engine.strategies.deepspeed import (
            adapt,
            ensure_rank_variables,
            read_preset,
        )

        if launcher == 'none':
            ensure_rank_variables()
            launcher = 'pytorch'
        config = adapt(read_preset(deepspeed), 1, 1, 0)
        cfg = dict(type='PixelDeepSpeedStrategy', config=config, gradient_accumulation_steps=1)
        wrapper = dict(type='PixelDeepSpeedOptimWrapper', optimizer=optimizer)
    else:
        kind = 'PixelSingleDeviceStrategy' if launcher == 'none' else 'PixelDDPStrategy'
        cfg, wrapper = dict(type=kind), dict(type='PixelOptimWrapper', optimizer=optimizer)
    strategy = STRATEGIES.build(dict(cfg, work_dir=str(folder), experiment_name='saving'))
    strategy._setup_env(launcher=launcher)
    strategy.prepare(
        model,
        optim_wrapper=wrapper,
        dispatch_kwargs=dict(max_iters=10**6, max_epochs=1, epoch_length=10**6),
    )
    return strategy


def _save(strategy, way: str, path: str) -> None:
    if way != 'mmengine':
        strategy.save_checkpoint(path, background=way == 'in a thread')
        return
    from mmengine._strategy import DeepSpeedStrategy, SingleDeviceStrategy

    if isinstance(strategy, DeepSpeedStrategy):
        from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import (
            TorchCheckpointEngine,
        )

        ours, engine = strategy.model.model.checkpoint_engine, strategy.model.model
        engine.checkpoint_engine = TorchCheckpointEngine()
        engine._copy_recovery_script = lambda folder: None
        DeepSpeedStrategy.save_checkpoint(strategy, path)
        engine.checkpoint_engine = ours
    elif is_main_process():
        SingleDeviceStrategy.save_checkpoint(strategy, path)
    barrier()


def _step(strategy, width: int) -> None:
    strategy.model.train_step(dict(inputs=torch.randn(8, width)), strategy.optim_wrapper)


def run(
    strategy, folder: Path, width: int, rounds: int = 5, steps: int = 10
) -> dict[str, dict[str, float]]:
    """Measure the ways in turn: steps, a save, and the rest of the steps.

    Args:
        strategy: Of :func:`build_strategy`.
        folder: Where checkpoints are written, and removed.
        width: Width of the model.
        rounds: Saves of each way.
        steps: Steps of each measurement.

    Returns:
        dict: Way -> ``stall`` (median seconds that a save kept the training), ``steps`` (median
        seconds of all steps with the save), ``size`` (bytes); ``none`` is without a save.
    """
    found: dict[str, dict[str, list]] = {
        way: dict(stall=[], steps=[], written=[]) for way in ('none', *WAYS)
    }
    path, size = str(folder / 'iter_1.pth'), 0
    for _ in range(2):
        _step(strategy, width)
    for _ in range(rounds):
        for way in found:
            barrier()
            began = time.perf_counter()
            for number in range(steps):
                _step(strategy, width)
                if number == 0 and way != 'none':
                    started = time.perf_counter()
                    _save(strategy, way, path)
                    found[way]['stall'].append(time.perf_counter() - started)
            found[way]['steps'].append(time.perf_counter() - began)
            result = strategy.settle_checkpoint()
            if result is not None:
                assert result.fault is None, result.fault
                found[way]['written'].append(result.seconds[1])
            if is_main_process():
                size = size_on_disk(path) or size
                remove(path)
            barrier()
    return {
        way: dict({key: median(all_) for key, all_ in values.items() if all_}, size=size)
        for way, values in found.items()
    }


def report(result: dict[str, dict[str, float]]) -> str:
    """Put the figures into a table.

    Args:
        result: Of :func:`run`.
    """
    size = max(values['size'] for values in result.values()) / 1e9
    lines = [f'checkpoint of {size:.2f} GB       stall   all steps (process {get_rank()}, seconds)']
    for way, values in result.items():
        stall = f'{values["stall"]:10.3f}' if 'stall' in values else ' ' * 10
        lines.append(f'{way:25s}{stall}{values["steps"]:12.2f}')
    return '\n'.join(lines)
