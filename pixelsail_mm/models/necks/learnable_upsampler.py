"""Learnable upsampling of the patch states, in channels-last form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models import initialisation
from pixelsail_mm.models.necks.feature_maps import join_pixels, split_pixels, stack_equal, unstack
from pixelsail_mm.registry import MODELS


class _Deconv2x2(nn.ConvTranspose2d):
    """Transposed convolution with kernel = stride = 2 on the pixels of stacks ``(n,h,w,C)``.

    Windows do not overlap, so it is one matrix product per pixel followed by a rearrangement;
    the parameters keep ConvTranspose2d's shapes, hence the authors' checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def forward(self, pixels: Tensor, sizes: list[torch.Size]) -> Tensor:
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        products = F.linear(pixels, weight, self.bias.repeat(4))
        return join_pixels([_depth_to_space(stack) for stack in split_pixels(products, sizes)])[0]


def _depth_to_space(x: Tensor) -> Tensor:
    """``(n,h,w,4C) -> (n,2h,2w,C)`` with the four blocks as (row, column) offsets."""
    n, h, w, c = x.shape
    x = x.view(n, h, w, 2, 2, c // 4).transpose(2, 3)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


class _Depthwise3x3(nn.Conv2d):
    """Depthwise 3x3 convolution on the pixels of stacks ``(n,h,w,C)``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, pixels: Tensor, sizes: list[torch.Size]) -> Tensor:
        # The permuted view is exactly torch's channels_last memory format: no copy.
        stacks = [
            super(_Depthwise3x3, self).forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            for x in split_pixels(pixels, sizes)
        ]
        return join_pixels(stacks)[0]


class _Pointwise(nn.Conv2d):
    """1x1 convolution as a matrix product on pixels; keeps Conv2d's ``(C,C,1,1)`` weight."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.linear(pixels, self.weight.flatten(1), self.bias)


class _UpsampleBlock(nn.Module):
    """Deconvolution x2, GELU, depthwise 3x3, pointwise, LayerNorm over channels.

    The pixels ``(P,C)`` of all stacks are one tensor, before and after: see the package's
    docstring.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = _Deconv2x2(channels)
        self.depthwise = _Depthwise3x3(channels)
        self.pointwise = _Pointwise(channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, pixels: Tensor, sizes: list[torch.Size]) -> Tensor:
        pixels = F.gelu(self.upsample(pixels, sizes))
        return self.norm(self.pointwise(self.depthwise(pixels, _doubled(sizes))))


def _doubled(sizes: list[torch.Size]) -> list[torch.Size]:
    """Sizes ``(n,h,w)`` of stacks after one block."""
    return [torch.Size((n, 2 * h, 2 * w)) for n, h, w in sizes]


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

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 16,
        out_stride: int = 2,
        max_channels: int = 1024,
        keep_variance: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        steps = math.log2(patch_size / out_stride)
        if steps < 0 or steps != int(steps):
            raise ConfigError(
                f'neck.out_stride={out_stride}: patch_size {patch_size} divided by '
                'it must be 1, 2, 4, 8, ...'
            )
        self.out_channels = min(in_channels, max_channels)
        self.out_stride = out_stride
        self.scale = patch_size // out_stride
        self.pre_projector = None
        if in_channels > max_channels:
            self.pre_projector = nn.Sequential(
                nn.Linear(in_channels, in_channels),
                nn.ReLU(),
                nn.Linear(in_channels, self.out_channels),
            )
        self.blocks = nn.ModuleList(_UpsampleBlock(self.out_channels) for _ in range(int(steps)))
        if keep_variance:
            for module in self.modules():
                before_rectifier = isinstance(module, nn.ConvTranspose2d) or (
                    self.pre_projector is not None and module is self.pre_projector[0]
                )
                initialisation.keep_variance(module, 2**0.5 if before_rectifier else 1.0)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Upsample maps ``(h,w,C)`` of any sizes to ``(h*s,w*s,out_channels)``, s = p/stride."""
        stacks, groups = stack_equal(maps)
        pixels, sizes = join_pixels(stacks)
        if self.pre_projector is not None:
            pixels = self.pre_projector(pixels)
        for block in self.blocks:
            pixels, sizes = block(pixels, sizes), _doubled(sizes)
        return unstack(split_pixels(pixels, sizes), groups)


@MODELS.register_module()
class BilinearUpsampler(BaseModule):
    """Plain baseline: bilinear enlargement of the patch states, no weights.

    Args:
        in_channels: Channels C; filled in by the meta-architecture.
        patch_size: Patch side in pixels; filled in by the meta-architecture.
        out_stride: Pixels per output cell; None keeps the patch grid (the paper's baseline).
        init_cfg: MMEngine initialisation config.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 16,
        out_stride: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_channels = in_channels
        self.out_stride = out_stride or patch_size
        self.scale = patch_size / self.out_stride

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Resize maps ``(h,w,C)`` to ``(h*s,w*s,C)``, s = patch size / stride."""
        if self.scale == 1:
            return list(maps)
        stacks, groups = stack_equal(maps)
        resized = [
            F.interpolate(
                x.permute(0, 3, 1, 2), scale_factor=self.scale, mode='bilinear', align_corners=False
            ).permute(0, 2, 3, 1)
            for x in stacks
        ]
        return unstack(resized, groups)
