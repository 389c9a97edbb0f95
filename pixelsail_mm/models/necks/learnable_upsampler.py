"""Learnable upsampling of the patch states, in channels-last form."""

from __future__ import annotations

import math

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models import initialisation
from pixelsail_mm.models.necks.feature_maps import apply_per_pixel, stack_equal, unstack
from pixelsail_mm.registry import MODELS


class _Deconv2x2(nn.ConvTranspose2d):
    """Transposed convolution with kernel = stride = 2 on stacks ``(n,h,w,C)``.

    Windows do not overlap, so it is one matrix product per pixel followed by a rearrangement;
    the parameters keep ConvTranspose2d's shapes, hence the authors' checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def forward(self, stacks: list[Tensor]) -> list[Tensor]:
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = self.bias.repeat(4)
        products = apply_per_pixel(lambda x: F.linear(x, weight, bias), stacks)
        return [_depth_to_space(product) for product in products]


def _depth_to_space(x: Tensor) -> Tensor:
    """``(n,h,w,4C) -> (n,2h,2w,C)`` with the four blocks as (row, column) offsets."""
    n, h, w, c = x.shape
    x = x.view(n, h, w, 2, 2, c // 4).transpose(2, 3)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


class _Depthwise3x3(nn.Conv2d):
    """Depthwise 3x3 convolution on stacks ``(n,h,w,C)``; one module call for all stacks."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, stacks: list[Tensor]) -> list[Tensor]:
        # The permuted view is exactly torch's channels_last memory format: no copy.
        return [super(_Depthwise3x3, self).forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                for x in stacks]


class _Pointwise(nn.Conv2d):
    """1x1 convolution as a matrix product on stacks; keeps Conv2d's ``(C,C,1,1)`` weight."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1)

    def forward(self, stacks: list[Tensor]) -> list[Tensor]:
        weight = self.weight.flatten(1)
        return apply_per_pixel(lambda x: F.linear(x, weight, self.bias), stacks)


class _UpsampleBlock(nn.Module):
    """Deconvolution x2, GELU, depthwise 3x3, pointwise, LayerNorm over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = _Deconv2x2(channels)
        self.depthwise = _Depthwise3x3(channels)
        self.pointwise = _Pointwise(channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, stacks: list[Tensor]) -> list[Tensor]:
        stacks = [F.gelu(x) for x in self.upsample(stacks)]
        return apply_per_pixel(self.norm, self.pointwise(self.depthwise(stacks)))


@MODELS.register_module()
class LearnableUpsampler(BaseModule):
    """Patch states to sharp features (Pixel-SAIL paper, "learnable upsampling").

    Args:
        in_channels: Channels C of the patch states; filled in by the meta-architecture.
        patch_size: Patch side p in pixels; filled in by the meta-architecture.
        out_stride: Pixels per output cell. The release gives 2, the paper says 4.
        max_channels: Working width is ``min(C, max_channels)``; wider states pass a pre-projector
            ``Linear(C,C) - ReLU - Linear(C,max_channels)`` first (as in the 3B release).
        keep_variance: Start with weights that pass on what differs between pixels, see
            :func:`~pixelsail_mm.models.initialisation.keep_variance`; False keeps PyTorch's.
        init_cfg: MMEngine initialisation config.

    Raises:
        ConfigError: ``patch_size / out_stride`` is not a power of two.
    """

    def __init__(self, in_channels: int, patch_size: int = 16, out_stride: int = 2,
                 max_channels: int = 1024, keep_variance: bool = False,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        steps = math.log2(patch_size / out_stride)
        if steps < 0 or steps != int(steps):
            raise ConfigError(f'neck.out_stride={out_stride}: patch_size {patch_size} divided by '
                              'it must be 1, 2, 4, 8, ...')
        self.out_channels = min(in_channels, max_channels)
        self.out_stride = out_stride
        self.scale = patch_size // out_stride
        self.pre_projector = None
        if in_channels > max_channels:
            self.pre_projector = nn.Sequential(
                nn.Linear(in_channels, in_channels), nn.ReLU(),
                nn.Linear(in_channels, self.out_channels))
        self.blocks = nn.ModuleList(_UpsampleBlock(self.out_channels) for _ in range(int(steps)))
        if keep_variance:
            for module in self.modules():
                before_rectifier = isinstance(module, nn.ConvTranspose2d) or (
                    self.pre_projector is not None and module is self.pre_projector[0])
                initialisation.keep_variance(module, 2**0.5 if before_rectifier else 1.0)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Upsample maps ``(h,w,C)`` of any sizes to ``(h*s,w*s,out_channels)``, s = p/stride."""
        stacks, groups = stack_equal(maps)
        if self.pre_projector is not None:
            stacks = apply_per_pixel(self.pre_projector, stacks)
        for block in self.blocks:
            stacks = block(stacks)
        return unstack(stacks, groups)


@MODELS.register_module()
class BilinearUpsampler(BaseModule):
    """Plain baseline: bilinear enlargement of the patch states, no weights.

    Args:
        in_channels: Channels C; filled in by the meta-architecture.
        patch_size: Patch side in pixels; filled in by the meta-architecture.
        out_stride: Pixels per output cell; None keeps the patch grid (the paper's baseline).
        init_cfg: MMEngine initialisation config.
    """

    def __init__(self, in_channels: int, patch_size: int = 16, out_stride: int | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.out_channels = in_channels
        self.out_stride = out_stride or patch_size
        self.scale = patch_size / self.out_stride

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Resize maps ``(h,w,C)`` to ``(h*s,w*s,C)``, s = patch size / stride."""
        if self.scale == 1:
            return list(maps)
        stacks, groups = stack_equal(maps)
        resized = [F.interpolate(x.permute(0, 3, 1, 2), scale_factor=self.scale, mode='bilinear',
                                 align_corners=False).permute(0, 2, 3, 1) for x in stacks]
        return unstack(resized, groups)
