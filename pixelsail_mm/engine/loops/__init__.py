"""Loops: training that resumes exactly, and validation and test over several datasets."""

from pixelsail_mm.engine.loops.multi_loops import MultiTestLoop, MultiValLoop
from pixelsail_mm.engine.loops.train_loop import PixelTrainLoop

__all__ = ['MultiTestLoop', 'MultiValLoop', 'PixelTrainLoop']
