"""Fetch an npm package's archive from the registry that npm is set to; nothing of it is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from pixelsail_mm.downloads.transfer import fetch_first
from pixelsail_mm.errors import OfflineError


def download(package: str, version: str, folder: Path, file_name: str, sha256: str) -> Path:
    """Download the archive of a package into ``folder``.

    Args:
        package: Name with scope, e.g. ``'@scope/name'``.
        version: Exact version.
        folder: Folder to fill.
        file_name: Name to give to the file.
        sha256: Checksum that the file must have.

    Returns:
        Path of the file.

    Raises:
        OfflineError: The registry is not known or could not be reached.
        DownloadError: It answers, but not with this version.
        StorageError: It cannot be written.
    """
    settings = npm_settings()
    scope, _, base = package.rpartition('/')
    registry = settings.get(f'{scope}:registry') or settings.get('registry')
    elsewhere = f'run `npm pack {package}@{version}` elsewhere'
    if not registry:
        raise OfflineError(
            'no npm registry is known: there is no npm that names its default one. '
            f'Set NPM_CONFIG_REGISTRY, or {elsewhere} and pass the file as '
            '--archive'
        )
    # Every registry has its archives there. Listings of mirrors often name another host.
    address = f'{registry.rstrip("/")}/{package}/-/{base}-{version}.tgz'
    return fetch_first(
        [(registry, lambda: address)],
        Path(folder) / file_name,
        sha256,
        settings.get('cafile'),
        f"Check the network and npm's registry setting, or {elsewhere}",
    )


def npm_settings() -> dict[str, str]:
    """Settings that matter here, from npm; without npm, from its environment variables."""
    npm = shutil.which('npm')
    if npm:
        done = subprocess.run([npm, 'config', 'list', '--json'], capture_output=True, text=True)
        if done.returncode == 0:
            return {
                name: value
                for name, value in json.loads(done.stdout).items()
                if name == 'cafile' or name.endswith('registry')
                if isinstance(value, str)
            }
    prefix = 'npm_config_'
    return {
        name[len(prefix) :].lower(): value
        for name, value in os.environ.items()
        if name.lower().startswith(prefix) and value
    }
