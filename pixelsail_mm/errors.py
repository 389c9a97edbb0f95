"""Errors that a user can correct, shown without a traceback, and exit statuses of commands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

#: Exit status of a training that stopped because its numbers are no longer finite.
DIVERGED = 3
#: Exit status of a process that waited too long, see :mod:`pixelsail_mm.engine.watchdog`.
HUNG = 4
#: Exit status of a run that had too little memory.
OUT_OF_MEMORY = 5
#: Exit status of a training that saved and stopped because a signal asked it to (EX_TEMPFAIL of
#: sysexits.h): started again with ``--resume`` it goes on.
STOPPED = 75


class UserError(Exception):
    """An error that a user can correct; its message names file, key and remedy.

    :func:`~pixelsail_mm.command_line.run_command` prints the message alone, for a subclass in any
    room or in a plug-in.
    """


class ConfigError(UserError, ValueError):
    """The config asks for something impossible; the message names the key and the remedy."""


def _readable(text: str, limit: int = 1500) -> str:
    """Cut out the middle of a message that quotes something huge from a damaged file."""
    half = limit // 2
    return text if len(text) <= limit else f'{text[:half]} [...] {text[-half:]}'


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be used.

    Args:
        path: The file or folder.
        reason: What is wrong with it.
        remedy: What the user can do.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str):
        reason = _readable(reason)
        super().__init__(f'{path}: {reason}; {remedy}')
        self.path, self.reason, self.remedy = str(path), reason, remedy

    def __reduce__(self):
        """Rebuild from the three fields, so that it crosses worker process borders."""
        return type(self), (self.path, self.reason, self.remedy)


class NotSavedError(UserError, OSError):
    """A checkpoint that the training cannot do without was not written.

    The message names its path and what stood in the way: a full disk with the bytes that are
    needed and free, or another error of the file system. Earlier checkpoints are intact.
    """


class DivergedError(UserError, RuntimeError):
    """Training stopped because losses, gradients or weights are NaN or infinite.

    Command lines end with the status :data:`DIVERGED`.
    """


class StoppedError(UserError, RuntimeError):
    """Training saved and stopped because a signal asked it to; raised in all processes at once.

    Command lines end with the status :data:`STOPPED`.
    """


class BadSampleError(UserError, ValueError):
    """A sample that cannot be used; names the culprit.

    During training the dataset skips and counts it, in test mode it propagates to the user.

    Args:
        file: File that holds the fault (image or annotation), or ``'<memory>'``.
        key: Record key or entry at fault, e.g. ``'masks[2]'``.
        reason: What is wrong and what to do about it.
    """

    def __init__(self, file: str | None, key: str, reason: str) -> None:
        self.file = str(file) if file else '<memory>'
        self.key, self.reason = _readable(key), _readable(reason)
        super().__init__(f'{_readable(self.file)}: {self.key}: {self.reason}')

    def __reduce__(self):
        """Rebuild from the three fields, so that it crosses worker process borders."""
        return type(self), (self.file, self.key, self.reason)


class AnnotationError(BadSampleError):
    """An annotation file as a whole cannot be used; raised when a dataset is built."""


_MEMORY_TEXTS = (
    "can't allocate memory",  # PyTorch's allocator of CPU memory, on Linux
    'not enough memory',  # the same elsewhere
    'Cannot allocate memory',  # the system
    'CUDA out of memory',
    'CUDA error: out of memory',
    'CUBLAS_STATUS_ALLOC_FAILED',
    'Insufficient shared memory',
)
_KILLED_TEXTS = ('is killed by signal: Killed', 'is killed by signal: Bus error')


class MemoryShortageError(UserError, MemoryError):
    """A run had too little memory; the log has a report with the settings that help.

    Command lines end with the status :data:`OUT_OF_MEMORY`.
    """


def is_worker_killed(error: BaseException) -> bool:
    """Tell whether a worker of a data loader was killed: the system does so for want of memory."""
    text = str(error)
    return 'DataLoader worker' in text and any(said in text for said in _KILLED_TEXTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means too little memory, of the machine or of a GPU.

    Args:
        error: Of Python, of PyTorch's allocators, or of its data loader whose worker was killed.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError':
        return True
    if not isinstance(error, (RuntimeError, OSError)):
        return False
    return is_worker_killed(error) or any(said in str(error) for said in _MEMORY_TEXTS)


class NoUsableSampleError(UserError, RuntimeError):
    """One training sample after the other cannot be used; names the last and what is wrong."""


class MissingFilesError(UserError, FileNotFoundError):
    """Files or folders that a config names do not exist.

    Args:
        missing: (config key, path) pairs, all of them; a path that several name is told once.
        dataset: Name of the dataset, or what else names them.
    """

    def __init__(self, missing: Iterable[tuple[str, str]], dataset: str) -> None:
        self.missing = list(missing)
        self.dataset = dataset
        keys: dict[str, list[str]] = {}
        for key, path in self.missing:
            keys.setdefault(path, []).append(key)
        lines = '\n'.join(
            f'  {path}   ({names[0]}' + (f' and {len(names) - 1} more)' if len(names) > 1 else ')')
            for path, names in keys.items()
        )
        super().__init__(
            f'{dataset}: {len(keys)} files or folders are missing:\n{lines}\n'
            'correct these keys (relative paths start at data_root; --cfg-options '
            'changes them for one run), or fetch or generate the data first'
        )

    def __reduce__(self):
        """Rebuild from the arguments, so that it crosses worker process borders."""
        return type(self), (self.missing, self.dataset)


class DownloadError(UserError, OSError):
    """A file could not be downloaded; names what was asked and the remedy."""


class OfflineError(DownloadError):
    """No package index, registry or hub could be reached at all."""


class StorageError(DownloadError):
    """A download cannot be written: full disk, no permission, a folder in the way."""


class NotPublishedError(DownloadError):
    """A file that was never published was asked for; names what to start from instead."""


class ArchiveError(UserError, ValueError):
    """An archive or a file of it is damaged, another one than expected, or unsafe."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f'{path}: {reason}')


def first_line(error: BaseException) -> str:
    """Cut another library's message to the line that says what is wrong.

    PyTorch's advice to load with ``weights_only=False`` is not passed on.
    """
    said = str(error).rpartition('WeightsUnpickler error:')[2].strip().splitlines()
    if len(said) > 1 and said[0].endswith(':'):  # a heading, as PyTorch's of unfitting weights
        said[0] += f' {said[1].strip()}'
    return (said or [type(error).__name__])[0].partition(' In PyTorch 2.6')[0][:300]


def shortened(names: list[str], limit: int) -> str:
    """Join names, the first ``limit`` of them.

    Args:
        names: The names.
        limit: How many are named before the rest is counted.
    """
    rest = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + rest
