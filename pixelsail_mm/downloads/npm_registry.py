"""Fetch an npm package's archive from the registry that npm is set to; nothing of it is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from pixelsail_mm.downloads.transfer import NETWORK_ERRORS, fetch, read_text, shown
from pixelsail_mm.errors import DownloadError, OfflineError, StorageError

# The short form of a package's listing, which npm itself asks for; not every mirror has it.
_ACCEPT = 'application/vnd.npm.install-v1+json, application/json;q=0.8'


def download(package: str, version: str, folder: Path, file_name: str,
             size: int | None = None) -> Path:
    """Download the archive of a package into ``folder``.

    Args:
        package: Name with scope, e.g. ``'@scope/name'``.
        version: Exact version.
        folder: Existing folder; what an interrupted call left there is continued.
        file_name: Name to give to the file.
        size: Size in bytes if it is known.

    Returns:
        Path of the file. Its content is not checked.

    Raises:
        OfflineError: The registry is not known or could not be reached.
        DownloadError: It answers, but not with this version.
        StorageError: It cannot be written.
    """
    settings = npm_settings()
    scope = package.partition('/')[0]
    registry = settings.get(f'{scope}:registry') or settings.get('registry')
    if not registry:
        raise OfflineError('no npm registry is known: there is no npm that names its default one. '
                           f'Set NPM_CONFIG_REGISTRY, or run `npm pack {package}@{version}` '
                           'elsewhere and pass the file as --archive')
    registry = registry.rstrip('/')
    certificates = settings.get('cafile')
    try:
        content, _ = read_text(f'{registry}/{quote(package, safe="@")}', certificates,
                               Accept=_ACCEPT)
        listed = _address(content, version)
        path = Path(folder) / file_name
        try:
            return fetch(_on_this_registry(listed, registry), path, certificates, size)
        except HTTPError:
            return fetch(listed, path, certificates, size)
    except StorageError:
        raise
    except NETWORK_ERRORS as error:
        # ValueError: it did answer, with something else.
        reached = isinstance(error, (HTTPError, ValueError))
        raise (DownloadError if reached else OfflineError)(
            f'{package} {version} could not be downloaded from {shown(registry)} ({error}). Check '
            f"the network and npm's registry setting, or run `npm pack {package}@{version}` "
            'elsewhere and pass the file as --archive') from error


def _address(content: str, version: str) -> str:
    """Address of a version's archive, from the listing of its package."""
    try:
        versions = json.loads(content)['versions']
        listed = versions[version]['dist']['tarball'] if version in versions else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError('its answer is no listing of a package') from error
    if listed is None:
        raise ValueError(f'it has no version {version}')
    return listed


def _on_this_registry(address: str, registry: str) -> str:
    """Address of an archive on the registry in use: listings of mirrors often name another host."""
    parts, own = urlsplit(address), urlsplit(registry)
    if parts.hostname == own.hostname:
        return address
    return own._replace(path=own.path.rstrip('/') + parts.path).geturl()


def npm_settings() -> dict[str, str]:
    """Settings that matter here, from npm; without npm, from its variables and ``~/.npmrc``."""
    npm = shutil.which('npm')
    if npm:
        done = subprocess.run([npm, 'config', 'list', '--json'], capture_output=True, text=True)
        if done.returncode == 0:
            found = json.loads(done.stdout)
            return {name: value for name, value in found.items()
                    if name == 'cafile' or name.endswith('registry') if isinstance(value, str)}
    prefix = 'npm_config_'
    return _npmrc(Path.home() / '.npmrc') | {
        name[len(prefix):].lower(): value for name, value in os.environ.items()
        if name.lower().startswith(prefix) and value}


def _npmrc(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    pairs = [line.partition('=') for line in lines
             if not line.lstrip().startswith((';', '#', '//'))]
    return {name.strip(): os.path.expandvars(value.strip().strip('"'))
            for name, sign, value in pairs if sign}
