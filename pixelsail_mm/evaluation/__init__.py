"""Metrics of pixel-level tasks; see :mod:`pixelsail_mm.evaluation.metrics`."""

from pixelsail_mm.evaluation.metrics import (
    CaptionMetric,
    GCGMetric,
    MultipleChoiceMetric,
    PerBenchMetric,
    PixelMetric,
    RefSegMetric,
)

__all__ = [
    'CaptionMetric',
    'GCGMetric',
    'MultipleChoiceMetric',
    'PerBenchMetric',
    'PixelMetric',
    'RefSegMetric',
]
