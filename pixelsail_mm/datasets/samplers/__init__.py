"""Samplers; any MMEngine or XTuner sampler can be wrapped in :class:`DrawIndexSampler`."""

from pixelsail_mm.datasets.samplers.draw_index_sampler import DrawIndexSampler

__all__ = ['DrawIndexSampler']
