"""Data structures passed between datasets, model, metrics and visualizer."""

from pixelsail_mm.structures.pixel_data_sample import PixelDataSample

__all__ = ['PixelDataSample']
