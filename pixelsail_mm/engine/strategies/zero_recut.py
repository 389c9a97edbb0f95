"""Resume a DeepSpeed checkpoint with another ZeRO stage or number of processes.

DeepSpeed reads its files only as they were cut (its universal checkpoints do not go from stage 3 to
the others, and leave out frozen weights and buffers). Here each process reads, for every weight,
the part that is its own now: master weights and the state of the optimizer, value by value.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pixelsail_mm.checkpoints.formats.safe_pickle import read_pickle
from pixelsail_mm.checkpoints.formats.zero_checkpoint import (
    STAND_INS,
    model_files,
    read_zero_folder,
)
from pixelsail_mm.checkpoints.formats.zero_optimizer import read_zero_optimizer
from pixelsail_mm.errors import CheckpointError

_REMEDY = (
    'resume with the ZeRO stage and the number of processes it was saved with, or begin a new '
    'training with its weights: leave out --resume and give --cfg-options load_from=CHECKPOINT'
)
# What DeepSpeed adds to the runner's part of the first file.
_COUNTS = ('global_steps', 'global_samples', 'skipped_steps')


class _Part(NamedTuple):
    """A process's part of a trained weight.

    Attributes:
        name: The weight.
        start: First value of it.
        flat: Vector of the optimizer that holds the part.
        offset: Where in it.
        numel: Number of values.
    """

    name: str
    start: int
    flat: Tensor
    offset: int
    numel: int


def _parts(engine) -> Iterator[_Part]:
    """List the parts of this process."""
    optimizer, stage3 = engine.optimizer, engine.zero_optimization_partition_weights()
    for name, weight in engine.module.named_parameters():
        if not weight.requires_grad:
            continue
        if stage3:
            group, offset, _ = optimizer.grad_position[optimizer.get_param_id(weight)]
            start, numel = _own(weight)
            yield _Part(name, start, optimizer.fp32_partitioned_groups_flat[group], offset, numel)
        elif weight._hp_mapping is not None:  # else it lies in other processes altogether
            mapping = weight._hp_mapping
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            yield _Part(name, here.start, flat, there.start, there.numel)


def _own(weight: Tensor) -> tuple[int, int]:
    """First value and number of values of this process's part of a weight, in stage 3."""
    size = weight.ds_tensor.ds_numel
    start = min(size * dist.get_rank(), weight.ds_numel)
    return start, min(size, weight.ds_numel - start)


def load_recut(engine, folder: Path) -> tuple[str, dict]:
    """Load weights, optimizer state and counts; the loss scale of float16 begins anew.

    Args:
        engine: DeepSpeed's engine, before its first step.
        folder: A folder of DeepSpeed's ZeRO stages 1 to 3, of any number of processes.

    Returns:
        tuple: The folder, and what the runner had saved in it; as ``engine.load_checkpoint``.

    Raises:
        CheckpointError: A weight is not in it, or the optimizer is one that cannot be filled.
    """
    optimizer = engine.optimizer
    stage3 = engine.zero_optimization_partition_weights()
    wanted = 'fp32_partitioned_groups_flat' if stage3 else 'single_partition_of_fp32_groups'
    if not hasattr(optimizer, wanted) or getattr(optimizer, 'swap_optimizer', False):
        raise CheckpointError(
            folder, f'cannot be cut anew for {type(optimizer).__name__} or for NVMe', _REMEDY
        )
    weights, saved = read_zero_folder(folder), read_zero_optimizer(folder)
    names = {*engine.module.state_dict().keys()} | dict(engine.module.named_parameters()).keys()
    missing = sorted(names - weights.keys())
    if missing:
        raise CheckpointError(folder, f'has no {missing[0]} ({len(missing)} missing)', _REMEDY)
    with torch.no_grad():
        _fill_module(engine, weights, stage3)
        for part in _parts(engine):
            place = slice(part.offset, part.offset + part.numel)
            weights[part.name].copy_to(part.flat.data[place], part.start)
            state = optimizer.optimizer.state[part.flat]
            if saved.steps is not None:
                state['step'] = torch.tensor(float(saved.steps))
            for key, values in saved.moments.items():
                if key not in state:
                    state[key] = torch.zeros_like(part.flat.data)
                values[part.name].copy_to(state[key][place], part.start)
    content = read_pickle(model_files(folder)[0], mmap=True, more=STAND_INS)
    for count in _COUNTS:
        setattr(engine, count, content[count])
    return str(folder), content


def _fill_module(engine, weights: dict, stage3: bool) -> None:
    """Fill what the module computes with: weights in training precision, and buffers."""
    for name, weight in engine.module.named_parameters():
        if stage3:
            start, numel = _own(weight)
            weights[name].copy_to(weight.ds_tensor.data.view(-1)[:numel], start)
        if not stage3 or weight.data.numel() == weight.ds_numel:  # small ones are whole everywhere
            weights[name].copy_to(weight.data)
    saved = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers():
        if name in saved:
            weights[name].copy_to(buffer.data)
