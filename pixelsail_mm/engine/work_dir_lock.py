"""One training at a time in a work directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pixelsail_mm.errors import ConfigError

LOCK = '.training.lock'


@contextlib.contextmanager
def work_dir_lock(work_dir: str | os.PathLike) -> Iterator[None]:
    """Own a work directory inside of the block; made if it is not there.

    The system takes the lock from a process that ends, however it ends, and does not pass it on to
    processes that it forks: a lock that is held is held by a training that runs. The file stays and
    says who had it last. It works across machines where their file system has POSIX locks (NFS
    does).

    Args:
        work_dir: The folder.

    Raises:
        ConfigError: Another training runs in it; names its host, process and start.
    """
    path = Path(work_dir) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a+', encoding='utf-8') as file:
        if not _lock(file):
            raise ConfigError(
                f'work_dir {work_dir} is in use: {_owner(path)}; two trainings would write over '
                'each other. Wait for it, end it, or give another --work-dir'
            )
        file.truncate(0)
        started = time.strftime('%Y-%m-%d %H:%M:%S')
        json.dump(dict(host=socket.gethostname(), pid=os.getpid(), started=started), file)
        file.flush()
        yield


def _lock(file) -> bool:
    """Take the lock; False if another process has it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # what some systems say instead
        return False
    return True


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding='utf-8'))
        return (
            f'process {owner["pid"]} on {owner["host"]}, a training since {owner["started"]}, '
            f'holds {path}'
        )
    except (OSError, ValueError, KeyError, TypeError):  # it is writing this just now
        return f'another process holds {path}'
