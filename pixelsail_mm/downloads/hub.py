"""Fetch a repository of the Hugging Face hub with huggingface_hub, and compare its checksums.

Weights are taken as safetensors only: the pickles that some repositories hold beside them can run
code when they are opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.downloads.transfer import innermost
from pixelsail_mm.errors import ArchiveError, DownloadError, OfflineError

_PATTERNS = ('*.safetensors', '*.json', '*.txt', '*.model', '*.jinja', 'LICENSE*', 'README.md')
_PICKLES = ['*.bin', '*.pt', '*.pth', '*.ckpt']
_RECORD = 'download.json'
_TIMEOUT = 10
# huggingface_hub goes on by itself after a broken connection, but not after every kind of break.
_TRIES = 3


def download_repository(
    repo: str,
    folder: Path,
    revision: str = 'main',
    more: Sequence[str] = (),
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Fetch weights (safetensors), config and tokenizer of a repository; continues what is there.

    Args:
        repo: Hub name, ``'owner/name'``.
        folder: Folder to fill; besides the files it gets ``download.json``, the record of what
            was fetched.
        revision: Commit, tag or branch.
        more: Patterns of further files.
        endpoint: Address of the hub; None for huggingface_hub's own (``HF_ENDPOINT``).

    Returns:
        The record: ``repo``, ``revision`` (the commit) and ``files`` (size, and the checksum that
        the hub lists: ``sha256``, or git's ``blob`` for small files).

    Raises:
        OfflineError: The hub cannot be reached; says what to do instead.
        DownloadError: It has no such repository or revision, asks for a login, has the weights as
            pickles only, or the transfer broke off.
        ArchiveError: A file is not what the hub lists; it was removed.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    with _explained(api.endpoint, repo, revision, folder):
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    files = _wanted(repo, info.siblings, (*_PATTERNS, *more))
    _fetch_files(api, repo, info.sha, folder, sorted(files))
    record = dict(repo=repo, revision=info.sha, files=files)
    wrong = wrong_files(folder, record)
    if wrong:
        for name in wrong:
            (folder / name).unlink(missing_ok=True)
        raise ArchiveError(
            folder,
            f'{", ".join(wrong)} of {repo} differ from the sums that the '
            'hub lists and were removed; run the same command again',
        )
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
    return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record of a complete :func:`download_repository`; None if there is none."""
    try:
        return json.loads((folder / _RECORD).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return None


def wrong_files(folder: Path, record: dict[str, Any]) -> list[str]:
    """Names of the files that are missing or differ from the record."""
    return [name for name, facts in record['files'].items() if not _is_right(folder / name, facts)]


def _is_right(path: Path, facts: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != facts['size']:
        return False
    if 'sha256' in facts:
        return sha256_of(path) == facts['sha256']
    from huggingface_hub.utils.sha import git_hash

    return git_hash(path.read_bytes()) == facts['blob']


def _wanted(repo: str, siblings: Sequence[Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Size and checksum of each file to fetch."""
    from huggingface_hub.utils import filter_repo_objects

    names = [sibling.rfilename for sibling in siblings]
    wanted = set(filter_repo_objects(names, allow_patterns=list(patterns)))
    # huggingface_hub would write there; the hub itself has no such names, a mirror may lie.
    for name in wanted:
        if name.startswith('/') or '..' in name.replace('\\', '/').split('/'):
            raise ArchiveError(
                repo,
                f'its file {name!r} leads out of the repository; nothing was '
                'fetched. Take another mirror',
            )
    if not any(name.endswith('.safetensors') for name in wanted):
        pickles = list(filter_repo_objects(names, allow_patterns=_PICKLES))
        raise DownloadError(
            f'{repo} has no safetensors, only {pickles or "other files"}; pickles '
            'are not fetched because they can run code when they are opened. Look '
            'for a conversion pull request of the repository and name it with '
            '--revision refs/pr/N'
        )
    # Files that are not in large-file storage have git's own checksum.
    return {
        sibling.rfilename: dict(
            size=sibling.size,
            **dict(sha256=sibling.lfs.sha256) if sibling.lfs else dict(blob=sibling.blob_id),
        )
        for sibling in siblings
        if sibling.rfilename in wanted
    }


def _fetch_files(api: Any, repo: str, commit: str, folder: Path, names: list[str]) -> None:
    from huggingface_hub import snapshot_download

    with _explained(api.endpoint, repo, commit, folder):
        for remaining in reversed(range(_TRIES)):
            try:
                snapshot_download(
                    repo,
                    revision=commit,
                    local_dir=folder,
                    allow_patterns=names,
                    endpoint=api.endpoint,
                    max_workers=4,
                )
                return
            except _broken_off():
                if not remaining:
                    raise


@contextmanager
def _explained(endpoint: str, repo: str, revision: str, folder: Path) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into our errors, with the remedy."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f'{repo} at {endpoint}'
    try:
        yield
    except RevisionNotFoundError as error:
        raise DownloadError(
            f'{where} has no revision {revision}; choose another with --revision, e.g. main'
        ) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise DownloadError(
            f'{where} does not exist or asks for a login; accept its terms on its '
            'page if it has any, and log in with `hf auth login` or '
            'HF_TOKEN'
        ) from error
    except _broken_off() as error:
        raise DownloadError(
            f'{where}: the connection kept breaking off ({innermost(error)}); run '
            'the same command again, it goes on where it stopped'
        ) from error
    except HfHubHTTPError as error:
        raise DownloadError(f'{where} answers with an error: {error}') from error
    except (*_unreachable(), OfflineModeIsEnabled) as error:
        by_choice = isinstance(error, OfflineModeIsEnabled)
        reason = 'HF_HUB_OFFLINE is set' if by_choice else innermost(error)
        raise OfflineError(
            f'the hub at {endpoint} cannot be reached ({reason}). Either fetch {repo} on a machine '
            f'that can, with `hf download {repo} --revision {revision} --include "*.safetensors" '
            f'"*.json" "*.txt" --local-dir {folder.name}`, and copy that folder to {folder}; or '
            'set HF_ENDPOINT to a mirror, HTTPS_PROXY to a proxy. Then name the folder in the '
            'config'
        ) from error


def _clients() -> list[ModuleType]:
    """HTTP libraries of huggingface_hub beside requests: httpx since version 1, httpx2 since 2."""
    return [import_module(name) for name in ('httpx', 'httpx2') if find_spec(name)]


def _broken_off() -> tuple[type[Exception], ...]:
    """Errors of a connection that ends in the middle."""
    import requests

    ours = (client.RemoteProtocolError for client in _clients())
    return requests.exceptions.ChunkedEncodingError, *ours


def _unreachable() -> tuple[type[Exception], ...]:
    """Errors of a connection that cannot be made."""
    import requests

    ours = (client.TransportError for client in _clients())
    return requests.ConnectionError, requests.Timeout, *ours
