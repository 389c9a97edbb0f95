"""Necks: from patch states to feature maps.

A neck is called with a list of maps ``(h,w,C)`` of any sizes and gives a list of maps
``(h*s,w*s,out_channels)``; it has the attributes ``out_channels`` and ``out_stride``. To run under
ZeRO-3 it must call each of its modules equally often however many maps there are: ZeRO-3 gathers
the weights of a module in all processes at once, and other processes have other numbers of images.
:mod:`~pixelsail_mm.models.necks.feature_maps` makes one tensor of a list for that. A list that the
neck or a module in it returns counts as one tensor there, see
:func:`pixelsail_mm.engine.strategies.deepspeed.joined_lists`.
"""

from pixelsail_mm.models.necks.learnable_upsampler import BilinearUpsampler, LearnableUpsampler

__all__ = ['BilinearUpsampler', 'LearnableUpsampler']
