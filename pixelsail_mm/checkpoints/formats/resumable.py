"""Which checkpoint to resume from: the newest one of a run whose every byte is as it was written.

PyTorch's files are zip archives with a CRC-32 for each record. A folder of DeepSpeed has, beside
them, a ``manifest.json`` with the names and sizes of its files, written before the folder gets its
name; folders of earlier versions are without it.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.logging import print_log

from pixelsail_mm.checkpoints.formats.checkpoint_files import POINTER
from pixelsail_mm.checkpoints.formats.safe_pickle import read_pickle
from pixelsail_mm.checkpoints.formats.zero_optimizer import read_layout
from pixelsail_mm.errors import CheckpointError
from pixelsail_mm.notices import warn_once

MANIFEST = 'manifest.json'
_CHUNK = 1 << 22
_REMEDY = 'delete it and resume from an earlier checkpoint (--resume without a path picks one)'


def write_manifest(folder: str | Path) -> None:
    """Write down which files a complete checkpoint folder has, and their sizes.

    Args:
        folder: The folder; every file in it is complete.
    """
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(dict(version=1, files=files), indent=1) + '\n')


def _check_manifest(folder: Path) -> None:
    manifest = folder / MANIFEST
    if not manifest.exists():
        warn_once(
            f'{folder} has no {MANIFEST} (an earlier version wrote it): its files are counted and '
            'compared with their checksums'
        )
        return
    try:
        files = json.loads(manifest.read_text())['files']
        sizes = {str(name): int(size) for name, size in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(manifest, f'damaged ({error})', _REMEDY) from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(folder, f'{name} is missing', _REMEDY)
        if path.stat().st_size != size:
            raise CheckpointError(
                path, f'has {path.stat().st_size:,} bytes where {size:,} were written', _REMEDY
            )
    for path in folder.glob('*.pt'):
        if path.name not in sizes:
            raise CheckpointError(path, f'not in {MANIFEST}: of another checkpoint', _REMEDY)


def _check_records(file: Path) -> None:
    """Compare every record with its size and its checksum."""
    name = ''
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = entry.filename
                with archive.open(entry) as record:  # which compares the checksum at the end
                    left = entry.file_size
                    while chunk := record.read(_CHUNK):
                        left -= len(chunk)
                if left:
                    raise zipfile.BadZipFile(f'{entry.file_size:,} bytes were written')
    except Exception as error:  # damaged bytes can make it raise anything
        what = f'damaged in {name}' if name else 'truncated or not a PyTorch file'
        raise CheckpointError(file, f'{what} ({error})', _REMEDY) from error


def verify_checkpoint(path: str | Path, part: tuple[int, int] = (0, 1)) -> None:
    """Check that a training checkpoint is complete and that its bytes are as they were written.

    Every byte of it is read; nothing in it runs.

    Args:
        path: A ``.pth`` file or a DeepSpeed checkpoint folder.
        part: Number of this process and number of processes that share the reading; each of them
            has to call this. Process 0 alone looks at the structure.

    Raises:
        CheckpointError: It is missing, incomplete or damaged.
    """
    path, (rank, processes) = Path(path), part
    if path.is_dir():
        files = sorted(path.glob('*.pt'))
        if not any(file.name.endswith('_model_states.pt') for file in files):
            raise CheckpointError(
                path, 'no *_model_states.pt in this folder', 'resume from another checkpoint'
            )
    elif path.is_file():
        files = [path]
    else:
        raise CheckpointError(path, 'no such checkpoint', 'check the path given to --resume')
    if rank == 0 and path.is_dir():
        _check_manifest(path)
    for file in files[rank::processes]:
        _check_records(file)
    if rank == 0 and path.is_dir():
        read_layout(path)
    elif rank == 0:
        read_pickle(path, map_location='meta')


def _step(path: Path) -> int:
    """Iteration in the name of a checkpoint; for ``epoch_N.pth`` the one that it records."""
    if path.name.startswith('epoch_') and path.is_file():
        try:
            return int(read_pickle(path, map_location='meta')['meta']['iter'])
        except (CheckpointError, KeyError, TypeError, ValueError):
            return -1
    numbers = re.findall(r'\d+', path.stem)
    return int(numbers[-1]) if numbers else -1


def resumable_candidates(work_dir: str | Path) -> list[Path]:
    """List the checkpoints of a run, the newest (by iteration) first.

    ``last_checkpoint`` only adds a name that no pattern finds: a run that was killed between the
    two writes leaves a pointer to the checkpoint before.

    Args:
        work_dir: The run's folder; it may have been moved since.
    """
    work_dir = Path(work_dir)
    found = {path for pattern in ('iter_*.pth', 'epoch_*.pth') for path in work_dir.glob(pattern)}
    pointer = work_dir / POINTER
    # Bytes that are no text name no file; the others are tried then.
    name = Path(pointer.read_text(errors='replace').strip()).name if pointer.is_file() else ''
    named = work_dir / name
    if name and '\0' not in name and named.exists():
        found.add(named)
    return sorted(found, key=lambda path: (_step(path), path.lstat().st_mtime), reverse=True)


def fault_of(path: Path, part: tuple[int, int] = (0, 1)) -> CheckpointError | None:
    """Tell why a checkpoint cannot be resumed from; None if it can.

    Args:
        path: The checkpoint.
        part: See :func:`verify_checkpoint`.
    """
    try:
        verify_checkpoint(path, part)
    except CheckpointError as problem:
        return problem
    except OSError as problem:
        return CheckpointError(path, f'cannot be read ({problem})', _REMEDY)
    return None


def newest_sound(
    candidates: Iterable[Path], check: Callable[[Path], CheckpointError | None] = fault_of
) -> str | None:
    """Find the first checkpoint that can be resumed from; say of each before it why not.

    Args:
        candidates: The newest first.
        check: Gives the fault of a checkpoint, the same one in all processes.

    Returns:
        str | None: Path of the checkpoint; None when there is none at all.

    Raises:
        CheckpointError: There are checkpoints, but every one is broken.
    """
    first = None
    for path in candidates:
        problem = check(path)
        if problem is None:
            return str(path)
        first = first or problem
        print_log(
            f'WARNING: {problem.path} is not usable ({problem.reason}); '
            'falling back to the checkpoint before it',
            logger='current',
            level=40 if get_rank() else 30,  # what other ranks say below that is not shown
        )
    if first is not None:
        raise first
    return None
