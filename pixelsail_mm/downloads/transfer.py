"""Fetch one file by its address: certificates, passwords, sizes, going on where it stopped."""

from __future__ import annotations

import base64
import http.client
import os
import ssl
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Iterator
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from pixelsail_mm.errors import StorageError

_TIMEOUT = 30
_CHUNK = 1 << 20
_PAUSE = 1.0
_FRUITLESS_TRIES = 3
MAX_DOWNLOAD = 256 << 20
#: What a request can end in, apart from a bug.
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)
_CUT_OFF = (ConnectionError, TimeoutError, http.client.IncompleteRead)


def shown(url: str) -> str:
    """The address without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()


class _Redirects(HTTPRedirectHandler):
    """Follows to web addresses only, and takes a password to its own host only."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> Request | None:
        """The next request; called by urllib."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ('http', 'https'):
            raise HTTPError(newurl, code, 'a redirect to this kind of address is not allowed',
                            headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header('Authorization')
        return request


# Reading the certificates of a system takes a tenth of a second.
_trusting = cache(lambda certificates: ssl.create_default_context(cafile=certificates))


def open_url(url: str, certificates: str | None = None, **headers: str) -> Any:
    """Open an address, with a password that is part of it.

    Args:
        url: ``http``, ``https`` or ``file`` address.
        certificates: File of trusted certificates; None for those of the system.
        **headers: Headers of the request, e.g. ``Accept``.

    Returns:
        The response, a context manager with ``read`` and ``headers``.

    Raises:
        OSError: No answer, or an answer that is an error (``HTTPError``).
        ValueError: Another kind of address.
    """
    parts = urlsplit(url)
    headers['User-Agent'] = 'pixelsail_mm'
    if parts.username:
        login = f'{unquote(parts.username)}:{unquote(parts.password or "")}'
        headers['Authorization'] = 'Basic ' + base64.b64encode(login.encode()).decode()
        url = shown(url)
    if parts.scheme not in ('http', 'https', 'file'):
        raise ValueError(f'cannot read {parts.scheme or "local"} addresses')
    # Also for http: it may be redirected to https.
    opener = build_opener(HTTPSHandler(context=_trusting(certificates)), _Redirects)
    return opener.open(Request(url, headers=headers), timeout=_TIMEOUT)


def read_text(url: str, certificates: str | None = None, **headers: str) -> tuple[str, str]:
    """Text and content type of a page; arguments as :func:`open_url` has them."""
    with open_url(url, certificates, **headers) as response:
        content = response.read(MAX_DOWNLOAD).decode('utf-8', 'replace')
        return content, response.headers.get('Content-Type', '')


def fetch(url: str, path: Path, certificates: str | None = None, size: int | None = None) -> Path:
    """Download a file; what an interrupted call left in ``PATH.part`` is continued.

    A connection that breaks off is opened again as long as bytes arrive. A server that cannot
    continue (no HTTP ranges) sends everything anew.

    Args:
        url: See :func:`open_url`.
        path: File to write; its name is given only when all has arrived. Content is not checked
            here, and must be: see :func:`~pixelsail_mm.downloads.archives.check_sha256`.
        certificates: See :func:`open_url`.
        size: Size in bytes if it is known; another one ends the download before it begins.

    Returns:
        ``path``.

    Raises:
        OSError: Network error; ``PATH.part`` keeps what has arrived.
        ValueError: The file has another size, or is larger than 256 MiB and ``size`` is not given.
    """
    part = path.with_name(path.name + '.part')
    fruitless = 0
    while True:
        before = _bytes_of(part)
        try:
            _continue(url, part, certificates, size)
            break
        except _CUT_OFF:
            fruitless = fruitless + 1 if _bytes_of(part) <= before else 0
            if not _bytes_of(part) or fruitless == _FRUITLESS_TRIES:
                raise
            time.sleep(_PAUSE * fruitless)
    with _writing(path):
        os.replace(part, path)
    return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell errors of the disk from those of the network, which are of the same type."""
    try:
        yield
    except OSError as error:
        raise StorageError(f'{path} cannot be written ({error.strerror}); make room, or choose '
                           'another folder, and run the same command again') from error


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _continue(url: str, part: Path, certificates: str | None, size: int | None) -> None:
    """Get the bytes that ``part`` lacks, or all of them where that cannot be done."""
    have = _bytes_of(part)
    if size is not None and have == size:
        return
    if have > (size or MAX_DOWNLOAD):
        have = 0
    try:
        response = open_url(url, certificates, **({'Range': f'bytes={have}-'} if have else {}))
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()
        have, response = 0, open_url(url, certificates)
    with response:
        if not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            have = 0
        length = response.headers.get('Content-Length')
        total = size if length is None else have + int(length)
        _check_size(total, size)
        with _writing(part):
            file = open(part, 'ab' if have else 'wb', buffering=0)
        with file:
            _copy(response, file, have, total, size)


def _check_size(total: int | None, size: int | None) -> None:
    if total is None:
        return
    if size is not None and total != size:
        raise ValueError(f'it has {total:,} bytes there, expected {size:,}')
    if size is None and total > MAX_DOWNLOAD:
        raise ValueError(f'the file is larger than {MAX_DOWNLOAD >> 20} MiB')


def _copy(response: Any, file: Any, have: int, total: int | None, size: int | None) -> None:
    from tqdm import tqdm
    limit = size or MAX_DOWNLOAD
    part = Path(file.name)
    # `disable=None`: no moving line where nobody watches.
    with tqdm(total=total, initial=have, desc=part.stem, unit='B', unit_scale=True,
              disable=None) as bar:
        while chunk := response.read(_CHUNK):
            have += len(chunk)
            bar.update(len(chunk))
            with _writing(part):
                while chunk:
                    chunk = chunk[file.write(chunk):]
            if have > limit:
                raise ValueError(f'the file is larger than {limit:,} bytes')
    if total is not None and have < total:
        # http.client ends a read quietly when the other side hangs up.
        raise ConnectionError(f'the connection ended after {have:,} of {total:,} bytes')
