"""Data sets made from files that package registries carry, in the layouts that the readers know."""

from pixelsail_mm.datasets.converters.labelme_mini import make_labelme_mini

__all__ = ['make_labelme_mini']
