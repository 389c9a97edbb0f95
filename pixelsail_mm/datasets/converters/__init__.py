"""Data sets made from files that package registries carry, in the layouts that the readers know."""

from .labelme_mini import make_labelme_mini
from .sdist import ArchiveError, DownloadError, OfflineError

__all__ = ['ArchiveError', 'DownloadError', 'OfflineError', 'make_labelme_mini']
