"""Writing checkpoints beside the training: copied to memory, then written by a thread.

Every process writes its own files into ``NAME.unfinished``. In a folder that several processes
write to, each leaves an empty file ``rank_R.written`` (or ``rank_R.failed``) when its own are on
the disk. The thread of process 0 waits for all of them, writes the manifest and gives the
checkpoint its name. Threads never communicate: collectives belong to the training.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, barrier, get_rank, is_main_process

from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    UNFINISHED_SUFFIX,
    move_into_place,
    remove,
)
from pixelsail_mm.checkpoints.formats.resumable import write_manifest
from pixelsail_mm.engine.disk_space import free_memory, system_error, write_fault
from pixelsail_mm.engine.step_check import on_any_rank
from pixelsail_mm.notices import warn_once

#: Seconds that a save in flight may take before the training goes on without it.
WRITE_LIMIT = 1800.0
#: Seconds that a training which ends with an error waits for a save in flight.
ABORT_LIMIT = 60.0
_WRITTEN, _FAILED = 'rank_{}.written', 'rank_{}.failed'


class SaveResult(NamedTuple):
    """What became of a save, the same in all processes.

    Attributes:
        path: Final name of the checkpoint.
        fault: Why it is not there; None if it is.
        seconds: How long copying to memory and writing took in process 0.
    """

    path: str
    fault: str | None
    seconds: tuple[float, float]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def in_memory(state: dict, own: bool) -> dict:
    """Copy a state to the CPU; tensors that are one there stay one.

    Args:
        state: Containers with tensors in them, in any depth.
        own: Also copy what is on the CPU already, which the next step would change.

    Returns:
        dict: The same containers; a part of a larger tensor takes no more than its own size.
    """
    copied: dict[tuple, torch.Tensor] = {}
    memo: dict[int, Any] = {}
    for tensor in _tensors(state):
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            tensor.device,
        )
        # Empty tensors all begin at address 0.
        if not tensor.numel() or place not in copied:
            copied[place] = tensor.detach().to('cpu', copy=own)
        memo[id(tensor)] = copied[place]
    return copy.deepcopy(state, memo)


def _bytes(state: dict) -> int:
    places = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _tensors(state)
    }
    return sum(places.values())


def write_state(state: dict, path: Path) -> None:
    """Write one file with ``torch.save``, down to the disk.

    A Python file, because PyTorch's own forgets which error the system reported.

    Args:
        state: What to write.
        path: The file.
    """
    with open(path, 'wb') as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


class CheckpointSave:
    """One checkpoint on its way to the disk: made, :meth:`add` each file, :meth:`start`.

    Making and settling one is for all processes together.

    Args:
        path: Final name of the checkpoint.
        background: Copy what is added, so that the training can go on while it is written.
    """

    def __init__(self, path: str, background: bool) -> None:
        self._path, self._background = Path(path), background
        self.unfinished = f'{path}{UNFINISHED_SUFFIX}'  #: where to write it
        self._files: list[tuple[dict, Path]] = []
        self._error: Exception | None = None
        self._fault: str | None = None
        self._size, self._seconds = 0, (0.0, 0.0)
        self._begun = time.monotonic()
        self._give_up = threading.Event()
        self._thread: threading.Thread | None = None
        if is_main_process():
            with self.noting_errors():
                remove(self.unfinished)
                self._path.parent.mkdir(parents=True, exist_ok=True)
        barrier()

    def add(self, state: dict, path: str) -> None:
        """Take over one file of the checkpoint.

        Where memory does not suffice for a copy, the file is written at once. Errors are kept for
        :meth:`settle`: the other processes would wait for this one.

        Args:
            state: What to write; it may be changed as soon as this returns, or, not in the
                background, when the checkpoint is settled.
            path: The file; :attr:`unfinished` or in it.
        """
        if self._error is not None:
            return
        needed = _bytes(state)
        self._size += needed
        fits = not self._background or needed * 1.1 < free_memory()
        try:
            content = in_memory(state, own=self._background and fits)
            if fits:
                self._files.append((content, Path(path)))
            else:
                warn_once(
                    f'checkpoints: {needed / 1e9:.2f} GB do not fit into memory a second time; the '
                    'training waits while they are written'
                )
                write_state(content, Path(path))
        except Exception as error:
            self._error = error

    @contextlib.contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Keep an error of the file system inside the block for :meth:`settle`."""
        try:
            yield
        except OSError as error:
            self._error = self._error or error

    def start(self, processes: int, published: Callable[[], None] | None = None) -> None:
        """Start writing.

        Args:
            processes: How many processes have files of this checkpoint, process 0 among them.
            published: Called by process 0 when the checkpoint has its name.
        """
        self._seconds = (time.monotonic() - self._begun, 0.0)
        if get_rank() < processes:
            self._thread = threading.Thread(
                target=self._run, args=(processes, published), name='checkpoint', daemon=True
            )
            self._thread.start()

    def _run(self, processes: int, published: Callable[[], None] | None) -> None:
        started = time.monotonic()
        try:
            self._write(processes)
            if is_main_process():
                self._publish(processes, published)
        except Exception as error:
            cause = system_error(error)
            if cause is not None:
                self._fault = write_fault(self._path, cause, self._size)
            else:
                self._fault, self._error = f'{self._path} is not written: {error!r}', error
            if is_main_process():
                self._drop(processes)
        self._seconds = (self._seconds[0], time.monotonic() - started)

    def _write(self, processes: int) -> None:
        folder, rank = Path(self.unfinished), get_rank()
        try:
            if self._error is not None:
                raise self._error
            while self._files:
                write_state(*self._files.pop(0))  # frees its memory
        except Exception:
            self._files.clear()
            if processes > 1:
                with contextlib.suppress(OSError):
                    (folder / _FAILED.format(rank)).touch()
            raise
        if processes > 1:
            (folder / _WRITTEN.format(rank)).touch()

    def _publish(self, processes: int, published: Callable[[], None] | None) -> None:
        unfinished = Path(self.unfinished)
        if processes > 1:
            self._wait_for_ranks(processes, (_WRITTEN,))
        if unfinished.is_dir():
            for rank in range(processes):
                (unfinished / _WRITTEN.format(rank)).unlink(missing_ok=True)
            write_manifest(unfinished)
        if self._give_up.is_set():
            raise TimeoutError(0, 'it took too long')
        move_into_place(unfinished, self._path)
        if published is not None:
            published()

    def _wait_for_ranks(self, processes: int, enough: tuple[str, ...]) -> None:
        """Wait until each process has left one of the marks.

        Raises:
            OSError: One failed, or did not answer in time.
        """
        folder, waiting = Path(self.unfinished), set(range(processes))
        while waiting:
            for rank in sorted(waiting):
                if any((folder / mark.format(rank)).exists() for mark in enough):
                    waiting.remove(rank)
                elif (folder / _FAILED.format(rank)).exists():
                    raise OSError(0, f'process {rank} could not write its part')
            if waiting and self._give_up.wait(0.02):
                raise TimeoutError(
                    0,
                    f'processes {sorted(waiting)} have not written their parts (all processes must '
                    f'see {folder})',
                )

    def _drop(self, processes: int) -> None:
        """Remove what was written of a failed checkpoint, which may be what fills the disk."""
        with contextlib.suppress(OSError):
            if processes > 1:
                self._wait_for_ranks(processes, (_WRITTEN, _FAILED))
            remove(self.unfinished)

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def settle(self, limit: float = WRITE_LIMIT) -> SaveResult:
        """Wait until it is written; all processes must call this.

        Args:
            limit: Seconds to wait; after that it counts as failed.

        Raises:
            RuntimeError: A bug, not the file system, kept it from being written.
        """
        device, end = torch.device(get_device()), time.monotonic() + limit
        waiting = True
        while waiting:
            # A process that has failed may have been unable to leave its mark in the folder.
            failed = not self._busy and self._fault is not None
            waiting, failed = on_any_rank([self._busy and time.monotonic() < end, failed], device)
            if failed:
                self._give_up.set()
            if waiting:
                self._join(0.05)
        if self._busy:
            self._give_up.set()
            self._fault = f'{self._path} is still being written after {limit:.0f} s'
        bug = self._error if self._error and not system_error(self._error) else None
        everyone = all_gather_object((self._fault, self._seconds, bug is not None))
        # Process 0 knows of another's fault only that there is one.
        fault = next((fault for fault, _, _ in reversed(everyone) if fault), None)
        if any(bugs for _, _, bugs in everyone):
            raise RuntimeError(fault) from bug
        if fault and is_main_process() and not self._busy:
            with contextlib.suppress(OSError):
                remove(self.unfinished)
        return SaveResult(str(self._path), fault, everyone[0][1])

    def _join(self, limit: float) -> None:
        if self._busy:
            self._thread.join(limit)
        else:
            time.sleep(limit)

    def finish(self, limit: float = ABORT_LIMIT) -> str | None:
        """Let this process's part end, whatever the others do.

        For a training that ends with an error: there may be nobody left to agree with.

        Args:
            limit: Seconds to wait.

        Returns:
            str | None: What kept it from being complete.
        """
        for seconds in (limit, 1.0):
            if self._busy:
                self._thread.join(seconds)
            self._give_up.set()
        return f'not written within {limit:.0f} s' if self._busy else self._fault
