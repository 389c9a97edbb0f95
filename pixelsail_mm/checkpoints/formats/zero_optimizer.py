"""The optimizer's state in a DeepSpeed checkpoint folder, weight by weight, however it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pixelsail_mm.checkpoints.formats.zero_checkpoint import (
    Shard,
    ZeroTensor,
    check_complete,
    joined_groups,
    joined_parameters,
    model_files,
    numbered,
)
from pixelsail_mm.errors import CheckpointError


class ZeroLayout(NamedTuple):
    """How a folder is cut.

    Attributes:
        stage: ZeRO stage, 0 without ZeRO.
        processes: Number of processes that wrote it.
    """

    stage: int
    processes: int

    def fits(self, other: ZeroLayout) -> bool:
        """Tell whether DeepSpeed can read it as it is; stages 1 and 2 cut alike."""
        return self.processes == other.processes and (
            self.stage == other.stage or {self.stage, other.stage} == {1, 2}
        )


@dataclass(frozen=True)
class ZeroOptimizer:
    """State of the optimizer.

    Attributes:
        moments: Name of a state (``exp_avg``) -> name of a weight -> its values.
        steps: Optimizer steps, None for an optimizer that does not count them.
    """

    moments: dict[str, dict[str, ZeroTensor]]
    steps: float | None


def _shards(folder: Path) -> tuple[list[Shard], list[Shard]]:
    states = [Shard(path) for path in model_files(folder)]
    return states, [Shard(path) for path in numbered(folder, '*_optim_states.pt')]


def read_layout(folder: Path) -> ZeroLayout:
    """Check that a folder has the files of all processes, and tell how it is cut.

    Args:
        folder: A folder of DeepSpeed.

    Raises:
        CheckpointError: A file is missing, truncated or holds code.
    """
    states, optims = _shards(folder)
    if not optims and states[0].content.get('param_shapes') is None:
        return ZeroLayout(0, len(states))
    return ZeroLayout(check_complete(folder, states, optims), len(optims))


def _of_group(name: str, optimizer: dict, group: int) -> Tensor:
    return optimizer['base_optimizer_state']['state'][group][name]


def _of_all_groups(name: str, optimizer: dict) -> list[Tensor]:
    state = optimizer['optimizer_state_dict']['state']
    return [state[group][name] for group in sorted(state)]


def read_zero_optimizer(folder: Path) -> ZeroOptimizer:
    """List the optimizer's state of every trained weight and where it is; nothing large is read.

    Args:
        folder: A folder of DeepSpeed's ZeRO stages 1 to 3.

    Raises:
        CheckpointError: The optimizer keeps something else than values for each weight and steps.
    """
    states, optims = _shards(folder)
    low = check_complete(folder, states, optims) < 3
    key = 'base_optimizer_state' if low else 'optimizer_state_dict'
    try:
        found = optims[0].optimizer[key]['state']
        first = dict(found[0]) if found else {}
        moments = {}
        for name, value in first.items():
            if name == 'step' or not isinstance(value, Tensor):
                continue
            if low:
                part_of = partial(_of_group, name)
                moments[name] = joined_groups(folder, states, optims, part_of)
            else:
                parts_of = partial(_of_all_groups, name)
                moments[name] = joined_parameters(folder, states, optims, parts_of)
        step = first.get('step', optims[0].optimizer[key]['param_groups'][0].get('step'))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            folder,
            f'keeps its optimizer state in a way that is not known ({error!r})',
            'resume with the ZeRO stage and the number of processes it was saved with',
        ) from error
    if isinstance(step, Tensor):
        step = optims[0].whole(step).read().item()
    return ZeroOptimizer(moments, step)
