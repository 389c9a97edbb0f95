"""Measurements of ``tools/analysis_tools``: steps, data, checkpoints, caches, precision, size."""
