"""Datasets: one reader per annotation format, combinations of readers, transforms, samplers."""

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.errors import AnnotationError, BadSampleError
from pixelsail_mm.datasets.llava import LLaVADataset
from pixelsail_mm.datasets.merged import MergedDataset
from pixelsail_mm.datasets.mixture import MixtureDataset
from pixelsail_mm.datasets.osprey import OspreyDataset
from pixelsail_mm.datasets.refcoco import RefCOCODataset

__all__ = [
    'AnnotationError', 'BadSampleError', 'LLaVADataset', 'MergedDataset', 'MixtureDataset',
    'OspreyDataset', 'PixelDataset', 'RefCOCODataset'
]
