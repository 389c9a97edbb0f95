"""What ``tools/analysis_tools`` measures: steps, data, checkpoints, caches, precision, size."""
