"""Samplers; any MMEngine or XTuner sampler can be wrapped in :class:`DrawIndexSampler`."""

from pixelsail_mm.datasets.samplers.draw_index_sampler import DrawIndexSampler
from pixelsail_mm.datasets.samplers.evaluation_batch_sampler import EvaluationBatchSampler

__all__ = ['DrawIndexSampler', 'EvaluationBatchSampler']
