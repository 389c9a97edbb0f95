"""How much a checkpoint needs, how much is free, and how to say that it does not fit."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

# Full disk, exhausted quota, a file larger than allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GB = 1e9


def free_bytes(folder: str | Path) -> int:
    """Give the bytes that this user may still write to a folder's disk; quotas are not seen.

    Args:
        folder: The folder, which need not exist yet.
    """
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_memory() -> float:
    """Give the bytes of memory that can be had without swapping; infinite where nobody knows.

    The limit of a container (cgroup version 2) counts, too.
    """
    free = float('inf')
    try:
        with open('/proc/meminfo') as file:
            lines = dict(line.split(':', 1) for line in file)
        free = int(lines['MemAvailable'].split()[0]) * 1024
        group = Path('/sys/fs/cgroup')
        limit = (group / 'memory.max').read_text().strip()
        if limit != 'max':
            used = int((group / 'memory.current').read_text())
            stat = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
            # Pages of files can be dropped; they count as used.
            free = min(free, int(limit) - used + int(stat.get('inactive_file', 0)))
    except (OSError, KeyError, ValueError):
        pass
    return free


def _size(count: float) -> str:
    return f'{count / _GB:.2f} GB' if count >= 1e7 else f'{int(count):,} bytes'


def too_large(path: str | Path, needed: int, free: int, left_out: str = '') -> str:
    """Say that a checkpoint does not fit on the disk, and what helps.

    Args:
        path: The checkpoint.
        needed: Bytes it takes; 0 if unknown.
        free: Bytes that are free.
        left_out: What the system said, if a write has failed already.
    """
    takes = f'it needs about {_size(needed)}, and ' if needed else ''
    return (
        f'{path} does not fit on the disk: {takes}{_size(free)} are free in {Path(path).parent}'
        f'{f" ({left_out})" if left_out else ""}. Free space there, keep fewer checkpoints '
        '(default_hooks.checkpoint.max_keep_ckpts), or write them elsewhere (--work-dir)'
    )


def system_error(error: BaseException | None) -> OSError | None:
    """Find the error of the file system behind what a library made of it.

    ``torch.save`` ends in a RuntimeError about positions in the file when a write fails.

    Args:
        error: What was raised.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def write_fault(path: str | Path, error: OSError, needed: int) -> str:
    """Say why a checkpoint could not be written.

    Args:
        path: The checkpoint.
        error: What the file system said.
        needed: Bytes it takes; 0 if unknown.
    """
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return too_large(path, needed, free_bytes(os.path.dirname(path) or '.'), said)
    return (
        f'{path} could not be written: {said}. Check that disk and folder are there and may be '
        'written to'
    )
