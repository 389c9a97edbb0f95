"""Initial weights that keep the signal."""

import torch
from torch import nn


@torch.no_grad()
def keep_variance(module: nn.Module, gain: float = 1.0) -> None:
    """Draw a layer's weights so that its output varies as much as its input; biases start at 0.

    PyTorch's defaults shrink what differs from pixel to pixel by a factor of two or three per
    layer while biases add what is the same everywhere: behind an upsampler of two blocks and a
    projection, features of different objects differ by 3 % of their length. A model that starts
    from nothing then learns one direction after another and needs thousands of steps to tell
    colours and shapes apart.

    Args:
        module: A linear layer, a convolution, or a transposed convolution with stride = kernel
            (each output sees one input). Other modules are left alone.
        gain: Factor on the standard deviation, e.g. ``2**0.5`` before a rectifier.
    """
    if isinstance(module, nn.ConvTranspose2d):
        fan_in = module.in_channels // module.groups
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        fan_in = module.weight[0].numel()
    else:
        return
    module.weight.normal_(std=gain / fan_in**0.5)
    if module.bias is not None:
        module.bias.zero_()
