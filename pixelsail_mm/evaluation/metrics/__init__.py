"""Metrics. They read data samples only, never the model's inputs."""

from pixelsail_mm.evaluation.metrics.base import PixelMetric
from pixelsail_mm.evaluation.metrics.multiple_choice_metric import MultipleChoiceMetric
from pixelsail_mm.evaluation.metrics.ref_seg_metric import RefSegMetric

__all__ = ['MultipleChoiceMetric', 'PixelMetric', 'RefSegMetric']
