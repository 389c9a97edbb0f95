"""Checkpoint files on disk: written whole or not at all, and found again for resuming."""

import contextlib
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Iterator, List, Optional, Union

from mmengine.logging import print_log

from pixelsail_mm.errors import CheckpointError

POINTER = 'last_checkpoint'
UNFINISHED_SUFFIX = '.unfinished'


def _flush_to_disk(path: Path) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    for file in files:
        with open(file, 'rb') as handle:
            os.fsync(handle.fileno())


def remove(path: Union[str, Path]) -> None:
    """Remove a checkpoint file or a DeepSpeed checkpoint folder, if it is there."""
    path = Path(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(unfinished: Union[str, Path], path: Union[str, Path]) -> None:
    """Give a completely written file or folder its final name in one step.

    A process killed before this point leaves the earlier checkpoint untouched and at most a
    ``*.unfinished`` entry behind, which the next save of the same name overwrites.

    Args:
        unfinished: The complete file or folder under its temporary name, on the same disk.
        path: The final name; an existing file or folder is replaced.
    """
    unfinished, path = Path(unfinished), Path(path)
    _flush_to_disk(unfinished)
    if path.is_dir():
        outdated = path.with_name(path.name + '.outdated')
        remove(outdated)
        os.replace(path, outdated)
        os.replace(unfinished, path)
        remove(outdated)
    else:
        os.replace(unfinished, path)


@contextlib.contextmanager
def replace_when_complete(path: Union[str, Path]) -> Iterator[str]:
    """Give a temporary name to write to; it becomes ``path`` only when the block succeeds.

    Args:
        path: File or folder to write.

    Yields:
        str: The temporary path beside it.
    """
    unfinished = str(path) + UNFINISHED_SUFFIX
    remove(unfinished)
    try:
        yield unfinished
    except BaseException:
        remove(unfinished)
        raise
    publish(unfinished, path)


def write_pointer(work_dir: Union[str, Path], checkpoint: Union[str, Path]) -> None:
    """Record the newest complete checkpoint in ``work_dir/last_checkpoint``."""
    with replace_when_complete(Path(work_dir) / POINTER) as unfinished:
        Path(unfinished).write_text(str(checkpoint))


def verify_checkpoint(path: Union[str, Path]) -> None:
    """Check cheaply that a training checkpoint was written to its end.

    PyTorch files are zip archives whose directory stands at the end, so a cut file has none.

    Args:
        path: A ``.pth`` file or a DeepSpeed checkpoint folder.

    Raises:
        CheckpointError: It is missing or incomplete.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob('*.pt'))
        if not any(file.name.endswith('_model_states.pt') for file in files):
            raise CheckpointError(path, 'no *_model_states.pt in this folder',
                                  'resume from another checkpoint')
    elif path.is_file():
        files = [path]
    else:
        raise CheckpointError(path, 'no such checkpoint', 'check the path given to --resume')
    for file in files:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(file, 'truncated or not a PyTorch file',
                                  'delete it and resume from an earlier checkpoint '
                                  '(--resume without a path picks one)')


def _step(path: Path) -> int:
    numbers = re.findall(r'\d+', path.stem)
    return int(numbers[-1]) if numbers else -1


def _candidates(work_dir: Path) -> List[Path]:
    found = [path for pattern in ('iter_*.pth', 'epoch_*.pth') for path in work_dir.glob(pattern)]
    found.sort(key=lambda path: (_step(path), path.stat().st_mtime), reverse=True)
    pointer = work_dir / POINTER
    if pointer.is_file():
        named = work_dir / Path(pointer.read_text().strip()).name
        found = [named] + [path for path in found if path != named]
    return found


def find_resumable(work_dir: Union[str, Path]) -> Optional[str]:
    """Find the newest complete checkpoint of a run, stepping back over broken ones.

    Args:
        work_dir: The run's folder; it may have been moved since.

    Returns:
        str | None: Path of the checkpoint; None when there is none at all.

    Raises:
        CheckpointError: There are checkpoints, but every one is broken.
    """
    candidates = _candidates(Path(work_dir))
    error = None
    for path in candidates:
        try:
            verify_checkpoint(path)
        except CheckpointError as problem:
            error = error or problem
            print_log(f'WARNING: {problem.path} is not usable ({problem.reason}); '
                      'falling back to the checkpoint before it', logger='current', level=30)
            continue
        return str(path)
    if error is not None:
        raise error
    return None
