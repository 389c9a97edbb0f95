"""Catalogue and safe download of public bases and experts."""

from pixelsail_mm.downloads.archives import check_sha256, read_members
from pixelsail_mm.downloads.catalogue import find_entry, hub_architecture, load_catalogue
from pixelsail_mm.downloads.install import check_entry, check_present, download_entry, listing

__all__ = [
    'check_entry',
    'check_present',
    'check_sha256',
    'download_entry',
    'find_entry',
    'hub_architecture',
    'listing',
    'load_catalogue',
    'read_members',
]
