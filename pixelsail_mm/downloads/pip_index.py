"""Find and fetch a file of a Python package in the indexes that pip is set to.

Nothing of the package is installed, built or run: ``pip download`` may run the setup code of a
source archive, this does not.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Iterator
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from pixelsail_mm.downloads.transfer import NETWORK_ERRORS, fetch, read_text, shown
from pixelsail_mm.errors import DownloadError, OfflineError, StorageError

# Both forms of the simple index (PEP 691 and PEP 503); mirrors often know only the second.
_ACCEPT = 'application/vnd.pypi.simple.v1+json, text/html;q=0.5'
_PIP_SECTIONS = ('global', 'install', 'download')


def download(package: str, file_name: str, folder: Path, size: int | None = None) -> Path:
    """Download one file of a package into ``folder``.

    Asked are pip's indexes: its ``index-url``, then every ``extra-index-url``.

    Args:
        package: Name of the package as the index spells it.
        file_name: The file wanted, e.g. ``'labelme-6.3.1.tar.gz'``.
        folder: Existing folder; what an interrupted call left there is continued.
        size: Size in bytes if it is known.

    Returns:
        Path of the file. Its content is not checked; see
        :func:`~pixelsail_mm.downloads.archives.check_sha256`.

    Raises:
        OfflineError: No index could be reached.
        DownloadError: The indexes answer, but not with this file.
        StorageError: It cannot be written.
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
            return fetch(links[file_name], Path(folder) / file_name, certificates, size)
        except StorageError:
            raise
        except NETWORK_ERRORS as error:
            reached |= isinstance(error, HTTPError)
            reasons.append(f'{shown(index)} ({error})')
    error_type = DownloadError if reached else OfflineError
    raise error_type(f'{file_name} could not be downloaded from {"; ".join(reasons)}. Check the '
                     "network and pip's index-url, or fetch the file on another machine and pass "
                     'it as --archive')


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


def _links(page_url: str, certificates: str | None) -> dict[str, str]:
    """Address of each file that a page of the simple index lists."""
    if page_url.startswith('file:'):
        page_url += 'index.html'
    content, kind = read_text(page_url, certificates, Accept=_ACCEPT)
    if 'json' in kind:
        try:
            pairs = [(file['filename'], file['url']) for file in json.loads(content)['files']]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError('its answer is no listing of a package') from error
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
