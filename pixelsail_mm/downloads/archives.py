"""Read single files out of tar and zip archives that were downloaded; nothing is ever run."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Callable, Iterator, Mapping, NamedTuple

from pixelsail_mm.errors import ArchiveError

_CHUNK = 1 << 20
_MAX_SMALL = 32 << 20
_ZIP_SUFFIXES = ('.zip', '.whl')
# What the readers of the standard library raise for damaged, encrypted or exotic archives.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, EOFError,
           zlib.error, NotImplementedError, RuntimeError)


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: Path inside the archive.
        size: Size in bytes as the archive states it.
        is_file: Whether it is a plain file (no folder, link or device).
        open: Opens it for reading; only before the next member is asked for.
    """

    name: str
    size: int
    is_file: bool
    open: Callable[[], BinaryIO]


def sha256_of(path: str | os.PathLike) -> str:
    """Sha256 of a file, or of all files of a folder in order of name, in hexadecimal digits.

    Args:
        path: File or folder.
    """
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
        raise ArchiveError(path, f'its sha256 is {found}, expected {expected}; it was not opened. '
                           'The file is damaged or of another version: get it again')


def read_members(path: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Read the files directly inside one folder of an archive; nothing is unpacked.

    Args:
        path: The archive.
        folder: Folder inside the archive.
        suffixes: Suffixes of the wanted files.

    Returns:
        Content by file name.

    Raises:
        ArchiveError: It is no archive, any member's path leads out of it, a wanted member is no
            plain file or larger than 32 MiB, or there is none.
    """
    found = {}
    with _members(path) as members:
        for member in members:
            name = PurePosixPath(member.name)
            if name.parent == PurePosixPath(folder) and name.suffix in suffixes:
                found[name.name] = _read(path, member, _MAX_SMALL)
    if not found:
        raise ArchiveError(path, f'it has no {" or ".join(suffixes)} files in {folder}; is it the '
                           'right archive?')
    return found


def extract_members(path: Path, targets: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
    """Write single members of an archive to files.

    Args:
        path: The archive.
        targets: File to write for each member's name.
        sizes: Size in bytes of each of these members.

    Raises:
        ArchiveError: As :func:`read_members`; or a member is missing or of another size.
    """
    missing = set(targets)
    with _members(path) as members:
        for member in members:
            if member.name not in missing:
                continue
            missing.remove(member.name)
            with open(targets[member.name], 'wb') as file:
                _copy(path, member, file, sizes[member.name])
    _complain_about(path, missing)


def join_chunks(path: Path, listing: str, key: str, target: Path) -> None:
    """Put a file together from chunks whose names are their sha256 (npm: @imgly's resources).

    The listing is JSON: ``{key: {"size": bytes, "chunks": [{"hash": name, "offsets": [begin,
    end]}, ...]}, ...}``; chunks lie beside it.

    Args:
        path: The archive.
        listing: Name of the member that lists the chunks.
        key: Which of its files is wanted.
        target: File to write.

    Raises:
        ArchiveError: The listing is missing or not of this form, chunks do not cover the file, or
            one is missing, of another size or of another content than its name says.
    """
    chunks = _chunks(path, listing, key)
    folder = PurePosixPath(listing).parent
    wanted = {str(folder / name): place for name, place in chunks.items()}
    missing = set(wanted)
    # Members come in the archive's order: going back to one would unpack everything before it.
    with _members(path) as members, open(target, 'wb') as file:
        for member in members:
            if member.name not in missing:
                continue
            missing.remove(member.name)
            begin, end = wanted[member.name]
            file.seek(begin)
            digest = _copy(path, member, file, end - begin)
            if digest != PurePosixPath(member.name).name:
                raise ArchiveError(path, f'chunk {member.name} has sha256 {digest}, not that of '
                                   'its name; get the archive again')
    _complain_about(path, missing)


def _chunks(path: Path, listing: str, key: str) -> dict[str, tuple[int, int]]:
    """Begin and end of each chunk by its name; together they cover the file without gaps."""
    folder = PurePosixPath(listing)
    content = read_members(path, str(folder.parent), (folder.suffix, )).get(folder.name)
    if content is None:
        raise ArchiveError(path, f'it lacks {listing}; is it the right archive?')
    try:
        entry = json.loads(content)[key]
        chunks = {chunk['hash']: tuple(map(int, chunk['offsets'])) for chunk in entry['chunks']}
        places, end = sorted(chunks.values()), int(entry['size'])
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(path, f'{listing} does not list the chunks of {key} '
                           f'({type(error).__name__}: {error}); use the version named in the '
                           'catalogue') from error
    if [0, *(place[1] for place in places)] != [*(place[0] for place in places), end]:
        raise ArchiveError(path, f'{listing}: the chunks of {key} do not make up its {end} bytes; '
                           'get the archive again')
    return chunks


@contextmanager
def _members(path: Path) -> Iterator[Iterator[Member]]:
    """The members of an archive; damage that reading them shows becomes an ArchiveError."""
    is_zip = Path(path).suffix in _ZIP_SUFFIXES
    try:
        yield _safe(path, _zip_members(path) if is_zip else _tar_members(path))
    except _DAMAGE as error:
        raise ArchiveError(path, f'not a readable {"zip" if is_zip else "tar"} archive ({error}); '
                           'get it again') from error


def _safe(path: Path, members: Iterator[Member]) -> Iterator[Member]:
    for member in members:
        name = PurePosixPath(member.name.replace('\\', '/'))
        if name.is_absolute() or '..' in name.parts:
            raise ArchiveError(path, f'member {member.name!r} leads out of the archive; nothing '
                               'was unpacked. Get the file from its original source')
        yield member


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, 'r:*') as archive:
        for member in archive:
            yield Member(member.name, member.size, member.isreg(),
                         lambda member=member: archive.extractfile(member))


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            yield Member(member.filename, member.file_size,
                         not member.is_dir() and kind in (0, stat.S_IFREG),
                         lambda member=member: archive.open(member))


def _check(path: Path, member: Member, limit: int) -> None:
    if not member.is_file or member.size > limit:
        raise ArchiveError(path, f'member {member.name!r} is not a plain file of at most '
                           f'{limit:,} bytes; get the archive from its original source')


def _read(path: Path, member: Member, limit: int) -> bytes:
    _check(path, member, limit)
    with member.open() as source:
        return source.read(limit)


def _copy(path: Path, member: Member, file: BinaryIO, size: int) -> str:
    """Write a member that must have this size; gives the sha256 of its content."""
    _check(path, member, size)
    digest, written = hashlib.sha256(), 0
    with member.open() as source:
        while chunk := source.read(min(_CHUNK, size + 1 - written)):
            written += len(chunk)
            if written > size:
                break
            digest.update(chunk)
            file.write(chunk)
    if written != size:
        raise ArchiveError(path, f'member {member.name!r} has not the {size:,} bytes it should '
                           'have; get the archive again')
    return digest.hexdigest()


def _complain_about(path: Path, missing: set[str]) -> None:
    if missing:
        raise ArchiveError(path, f'it lacks {", ".join(sorted(missing))}; is it the right archive?')
