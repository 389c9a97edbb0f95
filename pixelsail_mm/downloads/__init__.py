"""Public bases and experts: what there is, where from, and fetching it safely."""

from .archives import check_sha256, read_members
from .catalogue import find_entry, hub_architecture, load_catalogue
from .errors import ArchiveError, DownloadError, NotPublishedError, OfflineError, StorageError
from .install import check_entry, check_present, download_entry, listing

__all__ = [
    'ArchiveError', 'DownloadError', 'NotPublishedError', 'OfflineError', 'StorageError',
    'check_entry', 'check_present', 'check_sha256', 'download_entry', 'find_entry',
    'hub_architecture', 'listing', 'load_catalogue', 'read_members'
]
