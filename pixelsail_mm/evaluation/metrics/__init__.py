"""Metrics. They read data samples only, never the model's inputs."""

from pixelsail_mm.evaluation.metrics.base import PixelMetric
from pixelsail_mm.evaluation.metrics.caption_metric import CaptionMetric
from pixelsail_mm.evaluation.metrics.gcg_metric import GCGMetric
from pixelsail_mm.evaluation.metrics.multiple_choice_metric import MultipleChoiceMetric
from pixelsail_mm.evaluation.metrics.perbench_metric import PerBenchMetric
from pixelsail_mm.evaluation.metrics.ref_seg_metric import RefSegMetric

__all__ = [
    'CaptionMetric',
    'GCGMetric',
    'MultipleChoiceMetric',
    'PerBenchMetric',
    'PixelMetric',
    'RefSegMetric',
]
