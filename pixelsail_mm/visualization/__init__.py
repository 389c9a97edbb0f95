"""Pictures of samples and predictions."""

from pixelsail_mm.visualization.pixel_visualizer import Panel, PixelVisualizer, build_visualizer
from pixelsail_mm.visualization.visualization_hook import PixelVisualizationHook

__all__ = ['Panel', 'PixelVisualizationHook', 'PixelVisualizer', 'build_visualizer']
