"""Pictures of samples and predictions."""

from pixelsail_mm.visualization.pixel_visualizer import PixelVisualizer
from pixelsail_mm.visualization.visualization_hook import PixelVisualizationHook

__all__ = ['PixelVisualizationHook', 'PixelVisualizer']
