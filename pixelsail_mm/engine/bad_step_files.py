"""What was in a skipped step, written down once for each process that had a part in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank

FOLDER = 'bad_steps'
#: What a data sample says about where it comes from.
_ORIGIN = ('sample_id', 'dataset', 'img_path')


def micro_batch(data_batch: Any, outputs: Mapping[str, Any] | None) -> dict:
    """Note what a micro-batch was and what came of it; its tensors are not kept.

    Args:
        data_batch: The collated batch, with ``data_samples``.
        outputs: The log variables: losses, scalars.

    Returns:
        dict: ``samples`` (a dict each), ``losses`` (tensors without gradient).
    """
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return dict(
        samples=[
            {key: sample.get(key) for key in _ORIGIN if sample.get(key) is not None}
            for sample in samples or ()
        ],
        losses={
            key: value.detach() if torch.is_tensor(value) else value
            for key, value in (outputs or {}).items()
        },
    )


def sample_ids(micro_batch: Mapping[str, Any]) -> list[str]:
    """Ids of the samples of a :func:`micro_batch`."""
    return [str(sample.get('sample_id', 'without id')) for sample in micro_batch['samples']]


def number(value: Any) -> float | str:
    """Spell a scalar as JSON has it, which knows no NaN: such values become text.

    Args:
        value: Number or tensor.
    """
    value = float(torch.as_tensor(value).float().mean())
    return value if math.isfinite(value) else str(value)


def write(work_dir: str, iteration: int, limit: int, content: Mapping[str, Any]) -> str:
    """Write ``WORK_DIR/bad_steps/iter_N_rank_R.json``; never fail.

    Args:
        work_dir: The run's folder.
        iteration: Number of the iteration that ended with the step.
        limit: Files that a process may leave there.
        content: Plain values.

    Returns:
        str: Path of the file; where there is none, why.
    """
    folder, rank = Path(work_dir) / FOLDER, get_rank()
    path = folder / f'iter_{iteration}_rank_{rank}.json'
    try:
        if len(list(folder.glob(f'iter_*_rank_{rank}.json'))) >= limit and not path.exists():
            return f'nowhere: {folder} has {limit} files of process {rank}'
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, default=str) + '\n')
    except OSError as error:
        return f'nowhere: {path} cannot be written ({error})'
    return str(path)


def losses_of(micro_batches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the losses that are NaN or infinite in any of the micro-batches."""
    names = [
        name
        for one in micro_batches
        for name, value in one['losses'].items()
        if not bool(torch.isfinite(torch.as_tensor(value)).all())
    ]
    return list(dict.fromkeys(names))
