"""Metrics of pixel-level tasks; see :mod:`pixelsail_mm.evaluation.metrics`."""

from pixelsail_mm.evaluation.metrics import MultipleChoiceMetric, PixelMetric, RefSegMetric

__all__ = ['MultipleChoiceMetric', 'PixelMetric', 'RefSegMetric']
