"""pixelsail_mm: Pixel-SAIL as a plugin framework on MMEngine and MMDetection conventions."""

from pixelsail_mm.compat import ensure_mmcv_ops
from pixelsail_mm.version import __version__

# Before anything can import mmdet.models, which asks for MMCV's compiled operators.
ensure_mmcv_ops()

__all__ = ['__version__']
