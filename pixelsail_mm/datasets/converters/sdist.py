"""Fetch a source archive from the user's package index and read single files out of it.

Nothing of the package is installed, built or run: ``pip download`` may run the setup code of a
source archive, this does not.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import zlib
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Iterator
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import Request, urlopen

# Both forms of the simple index (PEP 691 and PEP 503); mirrors often know only the second.
_ACCEPT = 'application/vnd.pypi.simple.v1+json, text/html;q=0.5'
_PIP_SECTIONS = ('global', 'install', 'download')
_TIMEOUT = 30
_MAX_DOWNLOAD = 256 << 20
_MAX_MEMBER = 32 << 20
_CHUNK = 1 << 20
_NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)


class DownloadError(OSError):
    """A file could not be downloaded; names the indexes that were asked and the remedy."""


class OfflineError(DownloadError):
    """No package index could be reached at all."""


class ArchiveError(ValueError):
    """An archive is damaged, another one than expected, or unsafe.

    Args:
        path: The archive.
        reason: What is wrong and what to do about it.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f'{path}: {reason}')


def download(package: str, file_name: str, folder: Path) -> Path:
    """Download one file of a package into ``folder``.

    Asked are pip's indexes: its ``index-url``, then every ``extra-index-url``.

    Args:
        package: Name of the package as the index spells it.
        file_name: The file wanted, e.g. ``'labelme-6.3.1.tar.gz'``.
        folder: Existing folder.

    Returns:
        Path of the file. Its content is not checked; see :func:`check_sha256`.

    Raises:
        OfflineError: No index could be reached.
        DownloadError: The indexes answer, but not with this file.
    """
    settings = pip_settings()
    certificates = settings.get('cert')
    reasons, reached = [], False
    first = settings['index-url'] if 'index-url' in settings else default_index()
    for index in (first, *settings.get('extra-index-url', '').split()):
        try:
            links = _links(f'{index.rstrip("/")}/{package}/', certificates)
            reached |= not index.startswith('file:')
            if file_name not in links:
                raise ValueError(f'it has no {file_name}')
            return _save(links[file_name], Path(folder) / file_name, certificates)
        except _NETWORK_ERRORS as error:
            reached |= isinstance(error, HTTPError)
            reasons.append(f'{_shown(index)} ({error})')
    error_type = DownloadError if reached else OfflineError
    raise error_type(f'{file_name} could not be downloaded from {"; ".join(reasons)}. Check the '
                     "network and pip's index-url, or fetch the file on another machine and pass "
                     'it as --archive')


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with its known checksum.

    Raises:
        ArchiveError: They differ; names both.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ArchiveError(path, f'its sha256 is {digest.hexdigest()}, expected {expected}; it was '
                           'not opened. The file is damaged or of another version: get it again')


def read_members(path: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Read the files directly inside one folder of a tar archive; nothing is unpacked.

    Args:
        path: The archive.
        folder: Folder inside the archive.
        suffixes: Suffixes of the wanted files.

    Returns:
        Content by file name.

    Raises:
        ArchiveError: It is no tar archive, any member's path leads out of it, a wanted member is
            a link or too large, or there is none.
    """
    found = {}
    try:
        with tarfile.open(path, 'r:*') as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or '..' in name.parts:
                    raise ArchiveError(path, f'member {member.name!r} leads out of the archive; '
                                       'nothing was unpacked. Get the file from its original '
                                       'source')
                if name.parent == PurePosixPath(folder) and name.suffix in suffixes:
                    found[name.name] = _read_member(path, archive, member)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ArchiveError(path, f'not a readable tar archive ({error}); get it again') from error
    if not found:
        raise ArchiveError(path, f'it has no {" or ".join(suffixes)} files in {folder}; is it the '
                           'right archive?')
    return found


def _read_member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.size > _MAX_MEMBER:
        raise ArchiveError(path, f'member {member.name!r} is not a plain file of at most '
                           f'{_MAX_MEMBER >> 20} MiB; get the archive from its original source')
    return archive.extractfile(member).read()


def pip_settings() -> dict[str, str]:
    """Options of pip's config files, overridden by its environment variables."""
    command = [sys.executable, '-m', 'pip', 'config', 'list']
    done = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, value = line.partition('=')
        section, _, option = name.rpartition('.')
        found.setdefault(section, {})[option] = _unquoted(value)
    settings: dict[str, str] = {}
    for section in _PIP_SECTIONS:
        settings |= found.get(section, {})
    return settings | {name[4:].lower().replace('_', '-'): value
                       for name, value in os.environ.items() if name.startswith('PIP_') and value}


def default_index() -> str:
    """The index that pip asks when it is not told one, as its own help names it.

    Raises:
        OfflineError: There is no pip, or its help does not say.
    """
    done = subprocess.run([sys.executable, '-m', 'pip', 'download', '--help'], capture_output=True,
                          text=True, env=dict(os.environ, COLUMNS='200'))
    found = re.search(r'\(default\s+(https?://[^\s)]+)\)', done.stdout)
    if found is None:
        raise OfflineError("no package index is known; set pip's index-url, or fetch the file on "
                           'another machine and pass it as --archive')
    return found.group(1)


def _unquoted(value: str) -> str:
    """Value as ``pip config list`` prints it, a Python literal."""
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _open(url: str, certificates: str | None):
    """Open a URL as pip would: with its certificates, and a password that is part of the URL."""
    parts = urlsplit(url)
    headers = {'Accept': _ACCEPT, 'User-Agent': 'pixelsail_mm'}
    if parts.username:
        login = f'{unquote(parts.username)}:{unquote(parts.password or "")}'
        headers['Authorization'] = 'Basic ' + base64.b64encode(login.encode()).decode()
        url = _shown(url)
    if parts.scheme not in ('http', 'https', 'file'):
        raise ValueError(f'cannot read {parts.scheme or "local"} addresses')
    context = None
    if parts.scheme == 'https':
        context = ssl.create_default_context(cafile=certificates)
    return urlopen(Request(url, headers=headers), timeout=_TIMEOUT, context=context)


def _shown(url: str) -> str:
    """The URL without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()


def _links(page_url: str, certificates: str | None) -> dict[str, str]:
    """Address of each file that a page of the simple index lists."""
    if page_url.startswith('file:'):
        page_url += 'index.html'
    with _open(page_url, certificates) as response:
        content = response.read(_MAX_DOWNLOAD).decode('utf-8', 'replace')
        is_json = 'json' in response.headers.get('Content-Type', '')
    if is_json:
        pairs = [(file['filename'], file['url']) for file in json.loads(content)['files']]
    else:
        pairs = _Anchors(content).pairs()
    return {name: urldefrag(urljoin(page_url, address)).url for name, address in pairs}


class _Anchors(HTMLParser):
    """The links of an HTML page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self._addresses: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the target of an anchor."""
        if tag == 'a':
            self._addresses += [value for name, value in attrs if name == 'href' and value]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """File name and address of each link."""
        for address in self._addresses:
            yield unquote(PurePosixPath(urlsplit(address).path).name), address


def _save(url: str, path: Path, certificates: str | None) -> Path:
    with _open(url, certificates) as response, open(path, 'wb') as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            if file.tell() > _MAX_DOWNLOAD:
                raise ValueError(f'the file is larger than {_MAX_DOWNLOAD >> 20} MiB')
    return path
