"""Why and how every process calls every module."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_of(*outputs: Tensor) -> Tensor:
    """Return a zero that depends on the given outputs.

    Under ZeRO-3 a module gathers its weights from all processes when it is called: a process whose
    batch does not need the module (text only, no mask, no visual prompt) must call it all the same,
    or the others wait for ever. Under plain data parallelism every parameter must have a gradient
    in every process. So such a process calls the module with a stand-in and adds this zero to what
    it does need; the module's weights then get a gradient of zeros.

    Args:
        *outputs: Outputs of such modules, of any shapes; at least one.

    Returns:
        Scalar 0, summed in float32: in float16 a long sum overflows, and 0 * inf is NaN.
    """
    return sum(0.0 * output.float().sum() for output in outputs)


def with_gradient(tensor: Tensor) -> Tensor:
    """Return a tensor with the same values that requires a gradient, as an input of a module.

    Under ZeRO-3 the backward pass lets go of a module's weights once the gradient of its input is
    there; without one they stay until the optimizer steps. If a stand-in requires no gradient and
    the maps of other processes do, then the next micro-batch of an accumulation window gathers the
    weights in those processes only, and all wait or mix up what they send.

    Args:
        tensor: Of any shape; given back as it is if it requires a gradient, or none is recorded.
    """
    if tensor.requires_grad or not torch.is_grad_enabled():
        return tensor
    return tensor.detach().requires_grad_()
