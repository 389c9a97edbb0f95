"""DeepSpeed ZeRO checkpoint folders, read in slices, without DeepSpeed and without a GPU.

DeepSpeed's own ``zero_to_fp32`` joins the partitions of stages 1 and 2 in memory before anything
can be copied out of them, so that loading a model holds two copies. Its lazy mode, for stage 3,
joins frozen weights so (peak 1.3 of the size of a model that is two thirds frozen, against 0.14
here, in 2.8 s against 1.5 s), and turns buffers of whole numbers into float32. Here only the
structure of the files is unpickled (tensors on the ``meta`` device, which know their place in the
file), and every weight is a list of places to read from.

What the folder holds (DeepSpeed 0.14 to 0.19):

* ``*_model_states.pt``: ``param_shapes``, one ordered dict name -> shape per parameter group, which
  says in which order the flat vectors hold the weights; ``shared_params``, alias -> name;
  ``module``, with stages 1 and 2 the model in training precision, with stage 3 its buffers among
  placeholders; frozen parameters as ``frozen_param_shapes`` and ``frozen_param_fragments``.
* ``*_optim_states.pt`` of each process: the float32 master weights beside the optimizer's state.
  Stages 1 and 2 cut each group's flat vector into one part per process, padded at the very end;
  stage 3 cuts every single parameter, each padded, and may split the flat result into sub-groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pixelsail_mm.checkpoints.formats.safe_pickle import can_be_mapped, read_pickle
from pixelsail_mm.errors import CheckpointError

#: Values read at once: 16 MiB of float32.
CHUNK = 1 << 22
#: Objects of DeepSpeed's that the files mention and that say nothing about weights.
STAND_INS = [
    (SimpleNamespace, 'deepspeed.runtime.fp16.loss_scaler.LossScaler'),
    (SimpleNamespace, 'deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler'),
    (SimpleNamespace, 'deepspeed.utils.tensor_fragment.fragment_address'),
    (int, 'deepspeed.runtime.zero.config.ZeroStageEnum'),
]
_REMEDY = 'copy the whole folder again, or use an earlier checkpoint'


class Piece(NamedTuple):
    """Values that stand one after the other in a file.

    Attributes:
        path: The file.
        offset: First byte.
        numel: Number of values.
    """

    path: Path
    offset: int
    numel: int


@dataclass(frozen=True, eq=False)
class ZeroTensor:
    """A weight that lies in pieces in the files of a checkpoint.

    Attributes:
        shape: Its shape.
        dtype: Its precision in the files.
        pieces: Where its values are, in order.
    """

    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @classmethod
    def within(
        cls, pieces: Sequence[Piece], shape: torch.Size, dtype: torch.dtype, start: int = 0
    ) -> ZeroTensor:
        """The weight whose values begin with number ``start`` of joined pieces."""
        stop = start + shape.numel()
        return cls(shape, dtype, tuple(_between(pieces, start, stop, dtype.itemsize)))

    def numel(self) -> int:
        """Number of values."""
        return self.shape.numel()

    def copy_to(self, target: Tensor, start: int = 0) -> None:
        """Fill a tensor straight from the files.

        Args:
            target: Contiguous tensor of any precision and device.
            start: Flat index of the first value to take.
        """
        flat = target.detach().view(-1)
        direct = flat.dtype == self.dtype and flat.device.type == 'cpu'
        done = 0
        for piece in _between(self.pieces, start, start + flat.numel(), self.dtype.itemsize):
            with open(piece.path, 'rb', buffering=0) as file:
                file.seek(piece.offset)
                for part in flat[done : done + piece.numel].split(CHUNK):
                    buffer = part if direct else torch.empty(len(part), dtype=self.dtype)
                    _fill(buffer, file, piece.path)
                    if not direct:
                        part.copy_(buffer)
            done += piece.numel

    def chunks(self) -> Iterator[Tensor]:
        """The values in order, at most :data:`CHUNK` at a time."""
        for start in range(0, self.numel(), CHUNK):
            chunk = torch.empty(min(CHUNK, self.numel() - start), dtype=self.dtype)
            self.copy_to(chunk, start)
            yield chunk

    def read(self) -> Tensor:
        """The whole weight in memory."""
        values = torch.empty(self.shape, dtype=self.dtype)
        self.copy_to(values)
        return values

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Some rows, in memory; ``rows``: int64 ``(n,)`` or a slice."""
        numbers = torch.arange(len(self))[rows]
        width = self.numel() // len(self)
        values = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        runs = (numbers.diff() != 1).nonzero().flatten().add(1).tolist()
        for first, last in zip([0, *runs], [*runs, len(numbers)]):
            if first < last:
                self.copy_to(values[first:last], int(numbers[first]) * width)
        return values


def _between(pieces: Sequence[Piece], start: int, stop: int, size: int) -> Iterator[Piece]:
    """Cut values ``start`` to ``stop`` of ``size`` bytes each out of joined pieces."""
    before = 0
    for path, offset, numel in pieces:
        first, last = max(start - before, 0), min(stop - before, numel)
        if first < last:
            yield Piece(path, offset + first * size, last - first)
        before += numel


def _fill(buffer: Tensor, file, path: Path) -> None:
    view = memoryview(buffer.view(torch.uint8).numpy())
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(path, 'ends before its last weight', _REMEDY)
        view = view[count:]


def is_zero_folder(folder: Path) -> bool:
    """Whether DeepSpeed wrote this checkpoint folder."""
    return any(folder.glob('*_model_states.pt')) or any(folder.glob('*_optim_states.pt'))


def read_zero_folder(folder: Path) -> dict[str, ZeroTensor]:
    """List the weights of a DeepSpeed checkpoint and where they are; nothing large is read.

    Trained weights are the float32 masters; frozen ones and buffers have the precision they were
    trained with. Tied weights are one object under several names.

    Args:
        folder: The folder that holds ``*_model_states.pt``, of any number of processes.

    Returns:
        Name -> :class:`ZeroTensor`.

    Raises:
        CheckpointError: A file is missing, truncated, holds code, or does not belong to the others;
            or the model was cut by tensor or expert parallelism.
    """
    states = [Shard(path) for path in model_files(folder)]
    optims = [Shard(path) for path in numbered(folder, '*_optim_states.pt')]
    first = states[0].content
    if first.get('mp_world_size') not in (None, 1):
        raise CheckpointError(
            folder,
            'the model was cut by tensor parallelism',
            'save it without, or merge it with the tool that cut it',
        )
    try:
        if first.get('param_shapes') is None:
            return {
                name: states[0].whole(value)
                for name, value in first['module'].items()
                if isinstance(value, Tensor)
            }
        stage = check_complete(folder, states, optims)
        masters = (joined_groups if stage < 3 else joined_parameters)(folder, states, optims)
        aliases = first['shared_params']
        weights = masters | _untrained(states, stage, {*masters, *aliases})
        return weights | {
            alias: weights[name] for alias, name in aliases.items() if name in weights
        }
    except CheckpointError:
        raise
    except Exception as error:  # whatever stands where a table, a shape or a tensor should
        raise CheckpointError(
            folder,
            f'not laid out as DeepSpeed 0.14 to 0.18 writes it ({type(error).__name__}: {error})',
            "convert it with DeepSpeed's own zero_to_fp32.py",
        ) from error


def read_structure(folder: Path) -> dict:
    """Read what the first process wrote beside the weights; tensors have shapes only.

    Raises:
        CheckpointError: The file is missing, truncated or holds code.
    """
    return Shard(model_files(folder)[0]).content


class Shard:
    """One file: its structure, and the pieces its tensors are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_pickle(path, map_location='meta', more=STAND_INS)
        self._in_place = can_be_mapped(path)

    def piece(self, tensor: Tensor) -> Piece:
        """Where the values of a tensor of :attr:`content` are."""
        start = tensor.untyped_storage()._checkpoint_offset
        if start is None or not tensor.is_contiguous() or not self._in_place:
            raise CheckpointError(
                self.path,
                'holds a tensor that cannot be read in place',
                "convert it with DeepSpeed's own zero_to_fp32.py",
            )
        offset = start + tensor.storage_offset() * tensor.dtype.itemsize
        return Piece(self.path, offset, tensor.numel())

    def whole(self, tensor: Tensor) -> ZeroTensor:
        """A tensor of :attr:`content` as a weight of its own."""
        return ZeroTensor(tensor.shape, tensor.dtype, (self.piece(tensor),))

    @property
    def optimizer(self) -> dict:
        """The part of ZeRO's optimizer."""
        return self.content['optimizer_state_dict']


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Files in the order of their process (10 after 9)."""
    return sorted(
        folder.glob(pattern),
        key=lambda path: [int(number) for number in re.findall(r'\d+', path.name)],
    )


def model_files(folder: Path) -> list[Path]:
    """Files of the model, in the order of their processes; an error where there are none."""
    found = numbered(folder, '*_model_states.pt')
    if not found:
        raise CheckpointError(folder, 'no *_model_states.pt in this folder', _REMEDY)
    return found


def check_complete(folder: Path, states: list[Shard], optims: list[Shard]) -> int:
    """Check that every process's files are there; return the ZeRO stage."""
    if not optims:
        raise CheckpointError(
            folder,
            'the *_optim_states.pt files, which hold the float32 weights, are not there',
            _REMEDY,
        )
    try:
        first = optims[0].optimizer
        # Stage 1 with bfloat16 weights and float32 gradients does not name itself.
        stage, count = int(first.get('zero_stage', 1)), first['partition_count']
        counts = set(count) if isinstance(count, (list, tuple)) else {count}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            optims[0].path, 'not the state of a ZeRO optimizer', _REMEDY
        ) from error
    if len(counts) != 1:
        raise CheckpointError(
            folder,
            f'its groups were cut into {sorted(counts)} parts (expert parallelism)',
            'merge it with the tool that cut it',
        )
    processes = counts.pop()
    for shards, kind, wanted in (
        (optims, 'optim', processes),
        (states, 'model', processes if stage == 3 else 1),
    ):
        if len(shards) != wanted:
            raise CheckpointError(
                folder,
                f'{wanted} *_{kind}_states.pt files were written but {len(shards)} are here',
                _REMEDY,
            )
    return stage


def joined_groups(
    folder: Path,
    states: list[Shard],
    optims: list[Shard],
    part_of: Callable[[dict, int], Tensor] = lambda optimizer, number: optimizer[
        'single_partition_of_fp32_groups'
    ][number],
) -> dict[str, ZeroTensor]:
    """Stages 1 and 2: slices of each group's vector, which all processes' parts make together."""
    weights = {}
    for number, shapes in enumerate(states[0].content['param_shapes']):
        parts = [part_of(shard.optimizer, number) for shard in optims]
        pieces = [shard.piece(part) for shard, part in zip(optims, parts)]
        dtype, start = parts[0].dtype, 0
        for name, shape in shapes.items():
            weights[name] = ZeroTensor.within(pieces, shape, dtype, start)
            start += shape.numel()
        held, unit = sum(piece.numel for piece in pieces), 2 * len(optims)
        # DeepSpeed pads to a multiple of twice the processes, and may cut the padding off again.
        if math.ceil(held / unit) != math.ceil(start / unit) or held < start:
            raise CheckpointError(
                folder,
                f'its parts hold {held:,} values of group {number} but '
                f'the model has {start:,}: they are of different runs',
                _REMEDY,
            )
    return weights


def joined_parameters(
    folder: Path,
    states: list[Shard],
    optims: list[Shard],
    parts_of: Callable[[dict], Sequence[Tensor]] = lambda optimizer: optimizer['fp32_flat_groups'],
) -> dict[str, ZeroTensor]:
    """Stage 3: every parameter in as many equal parts as there are processes."""
    flat = [[shard.piece(part) for part in parts_of(shard.optimizer)] for shard in optims]
    dtype = parts_of(optims[0].optimizer)[0].dtype
    weights, start = {}, 0
    for shapes in states[0].content['param_shapes']:
        for name, shape in shapes.items():
            part = math.ceil(shape.numel() / len(optims))
            pieces = [
                piece
                for vector in flat
                for piece in _between(vector, start, start + part, dtype.itemsize)
            ]
            weights[name] = ZeroTensor.within(pieces, shape, dtype)
            start += part
    for shard, vector in zip(optims, flat):
        held = sum(piece.numel for piece in vector)
        if held != start:
            raise CheckpointError(
                shard.path,
                f'holds {held:,} values where the model has '
                f'{start:,} per process: it is of another run',
                _REMEDY,
            )
    return weights


def _untrained(states: list[Shard], stage: int, trained: Container[str]) -> dict[str, ZeroTensor]:
    """Buffers and frozen parameters, which no optimizer holds."""
    first = states[0].content
    module = first['module']
    names = module if stage < 3 else first['buffer_names']
    weights = {
        name: states[0].whole(module[name])
        for name in names
        if name not in trained and isinstance(module.get(name), Tensor)
    }
    if stage < 3:
        return weights
    for name, shape in (first.get('frozen_param_shapes') or {}).items():
        parts = [shard.content['frozen_param_fragments'][name] for shard in states]
        pieces = [shard.piece(part) for shard, part in zip(states, parts)]
        weights[name] = ZeroTensor.within(pieces, shape, parts[0].dtype)
    return weights
