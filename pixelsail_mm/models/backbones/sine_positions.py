"""Fixed sine features of where in the image a patch is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixelsail_mm.errors import ConfigError

# From one turn over the image to a twentieth of it. With the 10,000 of DETR's sine embedding three
# quarters of the channels hardly change within an image and the rest is lost next to the colours.
TEMPERATURE = 20.0


def _sines(places: Tensor, channels: int) -> Tensor:
    """``(n,channels)``, sines beside cosines, of places ``(n,)`` in 0..1."""
    steps = torch.arange(channels // 2, device=places.device) / (channels // 2)
    angles = 2 * math.pi * places[:, None] * TEMPERATURE**-steps
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sine_positions(
    grids: Sequence[tuple[int, int]], channels: int, device: torch.device | str = 'cpu'
) -> Tensor:
    """Features of all patches of a batch, row by row.

    Half of the channels tells the row, half the column, each as a share of the image's height or
    width (centres of patches), whatever the number of patches.

    Args:
        grids: Rows and columns of patches per image; (0, 0) for a sample without one.
        channels: A multiple of 4.
        device: Where to compute them.

    Returns:
        ``(sum of rows * columns, channels)`` float32 with values in -1..1.

    Raises:
        ConfigError: ``channels`` is not a multiple of 4.
    """
    if channels % 4:
        raise ConfigError(f'sine positions need a hidden size that is a multiple of 4: {channels}')
    made: dict[tuple[int, int], Tensor] = {}
    for rows, columns in map(tuple, grids):
        if (rows, columns) not in made:
            down, across = (
                _sines((torch.arange(n, device=device) + 0.5) / max(n, 1), channels // 2)
                for n in (rows, columns)
            )
            made[rows, columns] = torch.cat(
                [down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)], dim=-1
            ).flatten(0, 1)
    return torch.cat([made[tuple(grid)] for grid in grids])
