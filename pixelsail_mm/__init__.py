"""pixelsail_mm: Pixel-SAIL as a plugin framework on MMEngine and MMDetection conventions."""

from pixelsail_mm.compat import ensure_mmcv_ops, postpone_optional_packages
from pixelsail_mm.version import __version__

# Before anything can import mmdet.models, which asks for MMCV's compiled operators.
ensure_mmcv_ops()
# Before anything can import MMEngine's optimizers and strategies.
postpone_optional_packages()

__all__ = ['__version__']
