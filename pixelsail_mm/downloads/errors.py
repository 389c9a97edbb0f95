"""What can go wrong when something is downloaded and opened."""

from __future__ import annotations

import os


class DownloadError(OSError):
    """A file could not be downloaded; names what was asked and the remedy."""


class OfflineError(DownloadError):
    """No package index, registry or hub could be reached at all."""


class StorageError(DownloadError):
    """What arrives cannot be written here: a full disk, no permission, a folder in the way."""


class NotPublishedError(DownloadError):
    """What was asked for exists nowhere; says so and what to start from instead."""


class ArchiveError(ValueError):
    """An archive or a file of it is damaged, another one than expected, or unsafe.

    Args:
        path: The archive or file.
        reason: What is wrong and what to do about it.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f'{path}: {reason}')
