"""ShapesWorld: drawn images of textured shapes with exact masks and strict expressions.

A data set small enough to train on a CPU, in the on-disk formats of the public ones.
"""

from pixelsail_mm.worlds.shapes_world.generate import make_shapes_world
from pixelsail_mm.worlds.shapes_world.presets import PRESETS, Preset

__all__ = ['PRESETS', 'Preset', 'make_shapes_world']
