"""pixelsail_mm: Pixel-SAIL as a plugin framework on MMEngine and MMDetection conventions."""

from pixelsail_mm.version import __version__

__all__ = ['__version__']
