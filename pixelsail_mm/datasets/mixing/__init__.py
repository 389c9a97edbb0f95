"""Combinations of readers, and samplers; any MMEngine or XTuner sampler can be wrapped."""

from pixelsail_mm.datasets.mixing.draw_index_sampler import DrawIndexSampler
from pixelsail_mm.datasets.mixing.evaluation_batch_sampler import EvaluationBatchSampler
from pixelsail_mm.datasets.mixing.merged import MergedDataset
from pixelsail_mm.datasets.mixing.mixture import MixtureDataset

__all__ = ['DrawIndexSampler', 'EvaluationBatchSampler', 'MergedDataset', 'MixtureDataset']
