"""True masks at the resolution of mask logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_MODES = ('area', 'nearest-exact', 'nearest')


def resize_targets(masks: Tensor, size: tuple[int, int], mode: str = 'area') -> Tensor:
    """Resize true masks to the cells of a coarser grid.

    Args:
        masks: Binary masks ``(n,H,W)``, any dtype.
        size: Rows and columns of the grid; more than ``(H,W)`` is allowed.
        mode: ``'area'``: each cell gets the share of its area that the mask covers, whatever the
            ratio of the sizes (``F.interpolate(mode='area')`` counts a pixel that two cells share
            fully in both). It says where the outline runs inside a cell. ``'nearest-exact'``: the
            pixel at the centre of the cell; where two are equally near, the one below and to the
            right of it. ``'nearest'``: the pixel at the top left of the cell, as in the authors'
            release. Logits are enlarged with their centres aligned, so masks learned from it lie
            up to half a cell too far down and to the right.

    Returns:
        float32 ``(n,*size)`` in 0..1.
    """
    masks = masks.to(torch.float32)
    if mode != 'area':
        return F.interpolate(masks[None], size=size, mode=mode)[0]
    # Autocast would round the shares to half precision.
    with torch.autocast(masks.device.type, enabled=False):
        rows, columns = (_shares(*sizes).to(masks.device) for sizes in zip(masks.shape[1:], size))
        return rows @ masks @ columns.T


def _shares(pixels: int, cells: int) -> Tensor:
    """Share ``(cells,pixels)`` of each cell's length that lies in each pixel; rows sum to 1.

    On the CPU: not every device has float64.
    """
    edges = torch.arange(cells + 1, dtype=torch.float64, device='cpu')[:, None] * pixels / cells
    starts = torch.arange(pixels, dtype=torch.float64, device='cpu')
    shared = torch.minimum(edges[1:], starts + 1) - torch.maximum(edges[:-1], starts)
    return (shared.clamp(min=0) * cells / pixels).float()
