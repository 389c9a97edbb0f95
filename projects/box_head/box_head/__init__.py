"""Boxes beside masks: a head, its targets and its metric."""

from .box_metric import BoxMetric
from .box_visualizer import BoxVisualizer
from .load_boxes import LoadBoxes
from .seg_token_box_head import SegTokenBoxHead

__all__ = ['BoxMetric', 'BoxVisualizer', 'LoadBoxes', 'SegTokenBoxHead']
