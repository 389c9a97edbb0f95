"""Read a page and fetch a file by address with requests and pooch; also from ``file:`` addresses.

An interrupted file starts anew, but is never taken for complete: pooch gives it its name only when
its sha256 is right.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pixelsail_mm.errors import DownloadError, OfflineError, StorageError

_TIMEOUT = 30
_RETRIES = 2


def fetch_first(
    places: Iterable[tuple[str, Callable[[], str]]],
    path: Path,
    sha256: str,
    certificates: str | None,
    remedy: str,
) -> Path:
    """Fetch a file from the first place that has it.

    Args:
        places: Address of each place, and a function that gives the file's address there.
        path: File to write; its folder is created.
        sha256: Checksum that the file must have.
        certificates: File of trusted certificates; None for the usual ones of requests.
        remedy: What the user can do if no place has it.

    Returns:
        ``path``.

    Raises:
        OfflineError: No place could be reached.
        DownloadError: A place answers, but not with this file.
        StorageError: It cannot be written.
    """
    import requests

    reasons, reached = [], False
    for place, find in places:
        try:
            _fetch(find(), path, sha256, certificates)
            return path
        except StorageError:
            raise
        except (OSError, ValueError) as error:  # requests' own errors are OSErrors
            offline = isinstance(error, (requests.ConnectionError, requests.Timeout))
            reached |= place.startswith('http') and not offline
            reasons.append(f'{_shown(place)} ({innermost(error)})')
    raise (DownloadError if reached else OfflineError)(
        f'{path.name} could not be downloaded from {"; ".join(reasons)}. {remedy}, and pass the '
        'file as --archive'
    )


def read_page(address: str, certificates: str | None) -> str:
    """Read the text of a page.

    Raises:
        OSError: No answer, or an answer that is an error (``requests.HTTPError``).
    """
    import requests

    if address.startswith('file:'):
        return _local(address).read_text(encoding='utf-8')
    response = requests.get(
        _shown(address),
        timeout=_TIMEOUT,
        **_access(address, certificates),
        headers={'Accept': 'text/html'},
    )
    response.raise_for_status()
    return response.text


def innermost(error: BaseException) -> str:
    """The first cause in words, without the objects that requests and urllib3 print."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error).rpartition('>: ')[2]


def _fetch(address: str, path: Path, sha256: str, certificates: str | None) -> None:
    import pooch
    import requests

    def copy(address: str, target: str, _: Any) -> None:
        shutil.copyfile(_local(address), target)

    if address.startswith('file:'):
        _local(address).stat()  # a missing source is no full disk
    download = (
        copy
        if address.startswith('file:')
        else pooch.HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            chunk_size=1 << 20,
            timeout=_TIMEOUT,
            # Some servers call an archive a compressed transfer, which requests would unpack.
            headers={'Accept-Encoding': 'identity'},
            **_access(address, certificates),
        )
    )
    store = pooch.create(
        path.parent,
        base_url='',
        registry={path.name: f'sha256:{sha256}'},
        urls={path.name: _shown(address)},
        retry_if_failed=_RETRIES,
    )
    try:
        store.fetch(path.name, downloader=download)
    except requests.RequestException:
        raise
    except OSError as error:
        raise StorageError(
            f'{path} cannot be written ({error.strerror}); make room, or choose '
            'another folder, and run the same command again'
        ) from error


def _access(address: str, certificates: str | None) -> dict[str, Any]:
    """Arguments of requests: password of the address (kept out of all messages), certificates."""
    from requests.utils import get_auth_from_url

    login = get_auth_from_url(address)
    return dict(auth=login if any(login) else None, verify=certificates or True)


def _shown(address: str) -> str:
    """The address without user name, password and fragment."""
    from requests.utils import urldefragauth

    return urldefragauth(address) if address.startswith('http') else address


def _local(address: str) -> Path:
    return Path(url2pathname(urlsplit(address).path))
