"""Files and folders on disk that are written whole or not at all."""

import contextlib
import fnmatch
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixelsail_mm.errors import ConfigError

POINTER = 'last_checkpoint'
UNFINISHED_SUFFIX = '.unfinished'
OUTDATED_SUFFIX = '.outdated'
# What a training writes to its work directory; others may be at work on the rest of it.
_OF_A_TRAINING = re.compile(rf'(.+\.pth|.+\.safetensors|{POINTER}|tokenizer)')


def _flush_to_disk(path: Path) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    for file in files:
        with open(file, 'rb') as handle:
            os.fsync(handle.fileno())


def _flush_names(folder: Path) -> None:
    """Make the names in a folder last; file systems that cannot flush a folder are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    outdated = path.with_name(path.name + OUTDATED_SUFFIX)
    if path.is_dir():
        remove(outdated)
        os.replace(path, outdated)
    os.replace(unfinished, path)
    _flush_names(path.parent)
    remove(outdated)


def tidy_leftovers(folder: str | Path) -> str:
    """Clean up what a training that was killed while it wrote has left in its folder.

    A half-written ``*.unfinished`` is removed. An ``*.outdated`` folder is the earlier one of two
    of the same name: it gets its name back if the later one is not there, else it is removed.
    Only names that a training writes are touched.

    Args:
        folder: The work directory; nothing may be writing to it.

    Returns:
        str: What was done, in one line; empty if there was nothing to do.
    """
    removed, restored = [], []
    for suffix in (OUTDATED_SUFFIX, UNFINISHED_SUFFIX):
        for path in sorted(Path(folder).glob('*' + suffix)):
            final = path.with_name(path.name.removesuffix(suffix))
            if not _OF_A_TRAINING.fullmatch(final.name):
                continue
            if suffix == OUTDATED_SUFFIX and not final.exists():
                os.replace(path, final)
                restored.append(final.name)
            else:
                remove(path)
                removed.append(path.name)
    said = [
        f'{what} {len(names)} ({", ".join(names)})'
        for what, names in (('removed', removed), ('restored', restored))
        if names
    ]
    return f'left over by a killed run in {folder}: {"; ".join(said)}' if said else ''


def size_on_disk(path: str | Path) -> int:
    """Give the bytes of a file, or of all files in a folder; 0 if there is nothing.

    Args:
        path: The file or folder.
    """
    path = Path(path)
    files = path.rglob('*') if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


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
