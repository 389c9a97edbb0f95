"""Lists of feature maps of different sizes, handled as few large tensors."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


def stack_equal(maps: list[Tensor]) -> tuple[list[Tensor], list[list[int]]]:
    """Stack maps ``(h,w,C)`` of equal size.

    Returns:
        Stacks ``(n,h,w,C)`` and, for each, the indices of its maps in the list.
    """
    members = defaultdict(list)
    for index, feature in enumerate(maps):
        members[tuple(feature.shape[:2])].append(index)
    groups = list(members.values())
    return [torch.stack([maps[i] for i in group]) for group in groups], groups


def unstack(stacks: list[Tensor], groups: list[list[int]]) -> list[Tensor]:
    """Undo :func:`stack_equal`; the maps may have been resized meanwhile."""
    maps: list[Tensor] = [None] * sum(map(len, groups))
    for stack, group in zip(stacks, groups):
        for index, feature in zip(group, stack):
            maps[index] = feature
    return maps


def join_pixels(maps: list[Tensor]) -> tuple[Tensor, list[torch.Size]]:
    """Lay maps ``(...,C)`` of any sizes behind one another.

    Returns:
        Pixels ``(P,C)``, a view where there is one map, and the sizes that
        :func:`split_pixels` takes.
    """
    flat = [feature.flatten(0, -2) for feature in maps]
    return flat[0] if len(flat) == 1 else torch.cat(flat), [feature.shape[:-1] for feature in maps]


def split_pixels(pixels: Tensor, sizes: list[torch.Size]) -> list[Tensor]:
    """Undo :func:`join_pixels`; the maps are views, and may have other channels than before."""
    parts = pixels.split([size.numel() for size in sizes])
    return [part.unflatten(0, size) for part, size in zip(parts, sizes)]


def apply_per_pixel(function, maps: list[Tensor]) -> list[Tensor]:
    """Apply a per-pixel function ``(P,C) -> (P,D)`` to maps ``(...,C)`` in **one** call.

    One call whatever the number and sizes of the maps, see
    :func:`~pixelsail_mm.models.every_rank.zero_of` for the reason.
    """
    if len(maps) == 1:
        return [function(maps[0])]
    pixels, sizes = join_pixels(maps)
    return split_pixels(function(pixels), sizes)
