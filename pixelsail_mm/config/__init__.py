"""Reading of config files: inheritance, overrides, swapped parts, benchmarks."""

from pixelsail_mm.config.benchmark import is_benchmark
from pixelsail_mm.config.options import parse_options
from pixelsail_mm.config.reading import import_custom_modules, read_config

__all__ = ['import_custom_modules', 'is_benchmark', 'parse_options', 'read_config']
