"""What to say when a training or an evaluation runs out of memory."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log

from pixelsail_mm.errors import MemoryShortageError, is_out_of_memory, is_worker_killed, shortened
from pixelsail_mm.type_names import type_name

_SHOWN = 8
_GB = 2**30


@dataclass
class Place:
    """What is at work.

    Attributes:
        batch: The collated batch; None before one is there.
        key: Config key of the data loader, e.g. ``'val_dataloader.0'``.
        doing: In words, with the iteration.
    """

    key: str
    doing: str
    batch: Any = None


@contextmanager
def explaining_memory(runner, key: str, doing: str) -> Iterator[Place]:
    """Report an error that means too little memory: on this rank, with the batch and the remedies.

    These are errors of PyTorch's allocators (CPU and CUDA), Python's ``MemoryError``, and workers
    of the data loader that were killed. Other errors pass unchanged.

    Args:
        runner: The runner; its config says which settings would help.
        key: See :class:`Place`.
        doing: See :class:`Place`.

    Yields:
        Place: The caller puts the batch there.

    Raises:
        MemoryShortageError: There was too little; the log has the report.
    """
    place = Place(key, doing)
    try:
        yield place
    except MemoryShortageError:
        raise
    except Exception as raised:
        error = _shortage(raised)
        if error is None:
            raise
        head = f'out of memory {place.doing} (rank {get_rank()} of {get_world_size()})'
        print_log(f'{head}\n{_report(runner, place, error)}', 'current', logging.ERROR)
        raise MemoryShortageError(
            f'{head}: {_cause(error)}; the report in the log has the batch and what helps'
        ) from error


def _shortage(error: BaseException | None) -> BaseException | None:
    """The error that means too little memory: this one, or one that it came of.

    PyTorch raises what it says of killed workers wherever the program happens to be, also where
    another library turns every error into its own.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if is_out_of_memory(error):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _cause(error: BaseException) -> str:
    """The line of an error that says what was asked for."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if 'memory' in line.lower() or 'killed' in line.lower()]
    return f'{type(error).__name__}: {(told or lines or ["no details"])[-1][:400]}'


def _report(runner, place: Place, error: BaseException) -> str:
    killed = is_worker_killed(error)
    parts = {
        'error': [_cause(error)],
        'batch': ["the worker's is not known"] if killed else describe_batch(place.batch),
        'memory': describe_memory(),
        'what helps': remedies(runner.cfg, place.key, killed),
    }
    return '\n'.join(f'  {name}: ' + '\n    '.join(lines) for name, lines in parts.items())


def describe_batch(batch: Any) -> list[str]:
    """Describe what makes a batch large, a line each.

    Args:
        batch: A collated batch, before the data preprocessor; None if none was there yet.
    """
    if not isinstance(batch, Mapping):
        return ['none was at hand' if batch is None else type(batch).__name__]
    inputs = batch.get('inputs')
    inputs = inputs if isinstance(inputs, Mapping) else {}
    samples = list(batch.get('data_samples') or ())
    lengths = [len(ids) for ids in inputs.get('input_ids', ())]
    images = [image.shape for image in inputs.get('image', ()) if image is not None]
    maps = [prompts for prompts in inputs.get('prompt_map', ()) if prompts is not None]
    grids = ['x'.join(map(str, prompts.shape)) for prompts in maps]
    masks = [sample.gt_masks.shape for sample in samples if sample.get('gt_masks') is not None]
    lines = [
        f'{max(len(samples), len(lengths))} samples: '
        + _few(sample.get('sample_id', 'without id') for sample in samples),
        f'{sum(lengths)} tokens, in rows of {_few(lengths)}',
        f'{len(images)} images: {_few(map(_size, images))} pixels; '
        f'{sum(prompts.numel() for prompts in maps)} patches, in grids of {_few(grids)}',
        f'{sum(shape[0] for shape in masks)} masks: '
        + _few(f'{shape[0]} of {_size(shape)}' for shape in masks if shape[0]),
        f'{sum(len(prompts[prompts >= 0].unique()) for prompts in maps)} visual prompts',
    ]
    return [line for line in lines if not line.startswith('0 ')] or ['empty']


def _size(shape: Sequence[int]) -> str:
    """``640x480`` of (n, 480, 640)."""
    return 'x'.join(map(str, reversed(shape[1:])))


def _few(values: Any) -> str:
    return shortened([str(value) for value in values], _SHOWN)


def peak_resident(who: int = resource.RUSAGE_SELF) -> int:
    """Most memory that this process, or one that it started and that ended, had so far, in bytes.

    Args:
        who: ``resource.RUSAGE_SELF`` or ``resource.RUSAGE_CHILDREN``.
    """
    unit = 1 if sys.platform == 'darwin' else 2**10  # of the system's figure
    return resource.getrusage(who).ru_maxrss * unit


def describe_memory() -> list[str]:
    """Describe the most memory used so far, and what there is."""
    lines = [f'peak of this process {peak_resident() / _GB:.2f} GB']
    ended = peak_resident(resource.RUSAGE_CHILDREN)
    if ended:
        lines[0] += f', of one that it started {ended / _GB:.2f} GB'
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        lines[0] += f'; the machine has {total / _GB:.1f} GB'
    if torch.cuda.is_available():
        device = torch.cuda.current_device()
        total = torch.cuda.get_device_properties(device).total_memory
        lines.append(
            f'cuda:{device}: peak of tensors {torch.cuda.max_memory_allocated() / _GB:.2f} GB, '
            f'reserved {torch.cuda.max_memory_reserved() / _GB:.2f} GB, of {total / _GB:.1f} GB'
        )
    return lines


def remedies(cfg: Any, key: str, worker: bool = False) -> list[str]:
    """Settings that lower the memory, as arguments of ``--cfg-options``, with their values now.

    Args:
        cfg: The run's config.
        key: See :class:`Place`.
        worker: A worker of the data loader was killed, not this process.
    """
    training = key == 'train_dataloader'
    loader = _at(cfg, key) or {}
    if isinstance(loader, (list, tuple)):
        key, loader = f'{key}.0', loader[0]
    size = loader.get('batch_size', 1)
    fewer = [f'{key}.batch_size={max(1, size // 2)} (now {size})']
    if training:
        count = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
        fewer[0] += (
            f' with optim_wrapper.accumulative_counts={2 * count} (now {count}): as many samples a '
            'step; for a new run, --resume keeps the batch size'
        )
    if size == 1:
        fewer = []
    found = list(_sizes(loader, key))
    smaller = [
        f'{where}={max(1, value // 2)} (now {value}): a quarter of the patches of a large image'
        + (f'; likewise in {len(found) - 1} more pipelines' if len(found) > 1 else '')
        for where, value in found[:1]
    ] or ['max_size of ResizeToGrid in the pipeline: fewer patches for a large image']
    workers = loader.get('num_workers', 0)
    if worker:
        return [
            f'{key}.num_workers={workers // 2} (now {workers}): each has samples of its own in '
            'memory',
            *(fewer or [f'{key}.prefetch_factor=1: fewer batches in advance']),
            'max_pixels of LoadImage in the pipeline: larger pictures are left out',
        ]
    return [*fewer, *smaller, *(_of_training(cfg) if training else [])]


def _of_training(cfg: Any) -> list[str]:
    """What makes a step of the training itself smaller."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if not backbone.get('gradient_checkpointing'):
        return [
            'model.backbone.gradient_checkpointing=True: activations are computed twice, not kept'
        ]
    if not cfg.get('deepspeed'):
        return ['--deepspeed zero2: the processes share gradients and optimizer state']
    return ['--deepspeed zero3_offload: they share the weights, too, and keep states on the CPU']


def _at(cfg: Any, key: str) -> Any:
    """Part of a config at a dotted key."""
    for name in key.split('.'):
        cfg = cfg[int(name)] if isinstance(cfg, (list, tuple)) else (cfg or {}).get(name)
    return cfg


def _sizes(node: Any, key: str) -> Iterator[tuple[str, int]]:
    """Dotted keys and values of ``max_size`` in all pipelines below."""
    if isinstance(node, Mapping):
        if type_name(node.get('type')) == 'ResizeToGrid':
            yield f'{key}.max_size', node.get('max_size', 1024)
        for name, value in node.items():
            yield from _sizes(value, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _sizes(value, f'{key}.{index}')
