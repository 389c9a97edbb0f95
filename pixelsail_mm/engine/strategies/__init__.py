"""Strategies: one device, data parallel, and DeepSpeed ZeRO; each on CPU (gloo) or GPU (NCCL)."""

from pixelsail_mm.engine.strategies.deepspeed import PixelDeepSpeedStrategy
from pixelsail_mm.engine.strategies.torch_strategies import (
    PixelDDPStrategy,
    PixelSingleDeviceStrategy,
)

__all__ = ['PixelDDPStrategy', 'PixelDeepSpeedStrategy', 'PixelSingleDeviceStrategy']
