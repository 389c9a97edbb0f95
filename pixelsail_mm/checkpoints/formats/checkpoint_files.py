"""Checkpoint files on disk: written whole or not at all, and found again for resuming."""

import contextlib
import fnmatch
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.logging import print_log

from pixelsail_mm.errors import CheckpointError, ConfigError

POINTER = 'last_checkpoint'
UNFINISHED_SUFFIX = '.unfinished'


def _flush_to_disk(path: Path) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    for file in files:
        with open(file, 'rb') as handle:
            os.fsync(handle.fileno())


def remove(path: str | Path) -> None:
    """Remove a checkpoint file or a DeepSpeed checkpoint folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


#: Files of a decoder and its tokenizer, whatever kind, as Transformers writes them; patterns.
BASE_FILES = (
    'config.json',
    'generation_config.json',
    'model*.safetensors',
    'model.safetensors.index.json',
    'chat_template.jinja',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.json',
    'merges.txt',
    'tokenizer.model',
)


def check_replaceable(folder: str | Path, ours: Sequence[str]) -> None:
    """Refuse to write to a folder that has more in it than an earlier result.

    A folder is replaced as a whole; a user who names a training's work directory would lose it.

    Args:
        folder: Folder that shall be written; it need not exist.
        ours: Names of what will be in it, patterns as in a shell.

    Raises:
        ConfigError: Something else is in it, or it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'{folder} is a file; name a folder')
    foreign = sorted(
        entry.name
        for entry in folder.glob('*')
        if not any(fnmatch.fnmatch(entry.name, pattern) for pattern in ours)
    )
    if foreign:
        raise ConfigError(
            f'{folder} is replaced as a whole, and {foreign[0]} in it would be lost '
            f'({len(foreign)} such entries); name a new folder'
        )


def move_into_place(unfinished: str | Path, path: str | Path) -> None:
    """Give a completely written file or folder its final name.

    A process killed before this point leaves the earlier checkpoint untouched and at most a
    ``*.unfinished`` entry behind, which the next save of the same name overwrites. A file is
    replaced in one step, a folder in two: between them the earlier one is ``*.outdated``.

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
def replace_when_complete(path: str | Path) -> Iterator[str]:
    """Give a temporary name to write to; it becomes ``path`` only when the block succeeds.

    Args:
        path: File or folder to write.

    Yields:
        str: The temporary path beside it.
    """
    # A path that ends in a slash would put the temporary folder into the final one.
    unfinished = str(Path(path)) + UNFINISHED_SUFFIX
    remove(unfinished)
    try:
        yield unfinished
    except BaseException:
        remove(unfinished)
        raise
    move_into_place(unfinished, path)


def write_pointer(work_dir: str | Path, checkpoint: str | Path) -> None:
    """Record the newest complete checkpoint in ``work_dir/last_checkpoint``."""
    with replace_when_complete(Path(work_dir) / POINTER) as unfinished:
        Path(unfinished).write_text(str(checkpoint))


def verify_checkpoint(path: str | Path) -> None:
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
            raise CheckpointError(
                path, 'no *_model_states.pt in this folder', 'resume from another checkpoint'
            )
    elif path.is_file():
        files = [path]
    else:
        raise CheckpointError(path, 'no such checkpoint', 'check the path given to --resume')
    for file in files:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(
                file,
                'truncated or not a PyTorch file',
                'delete it and resume from an earlier checkpoint '
                '(--resume without a path picks one)',
            )


def _step(path: Path) -> int:
    numbers = re.findall(r'\d+', path.stem)
    return int(numbers[-1]) if numbers else -1


def _candidates(work_dir: Path) -> list[Path]:
    found = [path for pattern in ('iter_*.pth', 'epoch_*.pth') for path in work_dir.glob(pattern)]
    found.sort(key=lambda path: (_step(path), path.lstat().st_mtime), reverse=True)
    pointer = work_dir / POINTER
    # Bytes that are no text name no file; the others are tried then.
    name = Path(pointer.read_text(errors='replace').strip()).name if pointer.is_file() else ''
    if name:
        named = work_dir / name
        found = [named] + [path for path in found if path != named]
    return found


def find_resumable(work_dir: str | Path) -> str | None:
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
            print_log(
                f'WARNING: {problem.path} is not usable ({problem.reason}); '
                'falling back to the checkpoint before it',
                logger='current',
                level=30,
            )
            continue
        return str(path)
    if error is not None:
        raise error
    return None
