"""Find and fetch a file of a Python package in the indexes that pip is set to.

Nothing of the package is installed, built or run: ``pip download`` may run the setup code of a
source archive, this does not. That is why pip only names its indexes here.
"""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

from pixelsail_mm.downloads.transfer import fetch_first, read_page
from pixelsail_mm.errors import OfflineError

_PIP_SECTIONS = ('global', 'install', 'download')


def download(package: str, file_name: str, folder: Path, sha256: str) -> Path:
    """Download one file of a package into ``folder``.

    Asked are pip's indexes: its ``index-url``, then every ``extra-index-url``.

    Args:
        package: Name of the package as the index spells it.
        file_name: The file wanted, e.g. ``'labelme-6.3.1.tar.gz'``.
        folder: Folder to fill.
        sha256: Checksum that the file must have.

    Returns:
        Path of the file.

    Raises:
        OfflineError: No index is known or could be reached.
        DownloadError: The indexes answer, but not with this file.
        StorageError: It cannot be written.
    """
    settings = pip_settings()
    certificates = settings.get('cert')
    first = settings['index-url'] if 'index-url' in settings else default_index()
    places = [
        (index, partial(_link, f'{index.rstrip("/")}/{package}/', file_name, certificates))
        for index in (first, *settings.get('extra-index-url', '').split())
    ]
    return fetch_first(
        places,
        Path(folder) / file_name,
        sha256,
        certificates,
        "Check the network and pip's index-url, or fetch it on another machine",
    )


def pip_settings() -> dict[str, str]:
    """Options of pip's config files, overridden by its environment variables."""
    command = [sys.executable, '-m', 'pip', 'config', 'list']
    done = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, value = line.partition('=')
        section, _, option = name.rpartition('.')
        found.setdefault(section, {})[option] = str(ast.literal_eval(value))
    settings: dict[str, str] = {}
    for section in _PIP_SECTIONS:
        settings |= found.get(section, {})
    return settings | {
        name[4:].lower().replace('_', '-'): value
        for name, value in os.environ.items()
        if name.startswith('PIP_') and value
    }


def default_index() -> str:
    """The index that pip asks when it is not told one, as its own help names it.

    Raises:
        OfflineError: There is no pip, or its help does not say.
    """
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--help'],
        capture_output=True,
        text=True,
        env=dict(os.environ, COLUMNS='200'),
    )
    found = re.search(r'\(default\s+(https?://[^\s)]+)\)', done.stdout)
    if found is None:
        raise OfflineError(
            "no package index is known; set pip's index-url, or fetch the file on "
            'another machine and pass it as --archive'
        )
    return found.group(1)


def _link(page: str, file_name: str, certificates: str | None) -> str:
    """Address of a file that a page of the simple index (PEP 503) links to."""
    if page.startswith('file:'):
        page += 'index.html'
    content = read_page(page, certificates)
    for target in re.findall(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)""", content, re.IGNORECASE):
        address = urljoin(page, html.unescape(target))
        if unquote(PurePosixPath(urlsplit(address).path).name) == file_name:
            return address
    raise ValueError(f'it has no {file_name}')
