"""Boxes beside masks: a head, its targets and its metric."""

from .box_metric import BoxMetric
from .load_boxes import LoadBoxes
from .seg_token_box_head import SegTokenBoxHead

__all__ = ['BoxMetric', 'LoadBoxes', 'SegTokenBoxHead']
