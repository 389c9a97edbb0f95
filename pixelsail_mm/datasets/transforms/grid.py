"""Image and prompt masks on the patch grid."""

from __future__ import annotations

from math import isqrt

import numpy as np
from PIL import Image

from pixelsail_mm.datasets.transforms.loading import PixelTransform, Results
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import TRANSFORMS
from pixelsail_mm.tokenization import NO_PROMPT

_FILTERS = dict(bilinear=Image.Resampling.BILINEAR, bicubic=Image.Resampling.BICUBIC)


def target_size(width: int, height: int, patch_size: int, max_size: int = 1024) -> tuple[int, int]:
    """Size to which an image is resized, a multiple of the patch size on both sides.

    The long side goes up to the next multiple of ``patch_size``, at most ``max_size`` (rounded
    down to a multiple); the short side keeps the aspect ratio, is truncated to whole pixels and
    then goes up to a multiple. As in the authors' release, except that a side never becomes 0:
    very thin images get one patch there.

    Args:
        width: Image width in pixels, >= 1.
        height: Image height in pixels, >= 1.
        patch_size: Side of a patch in pixels.
        max_size: Upper bound of the long side in pixels, >= ``patch_size``.

    Returns:
        (width, height) in pixels.

    Raises:
        ConfigError: A number is out of range.
    """
    _check_size('target_size', width, height, patch_size, max_size)
    long, short = max(width, height), min(width, height)
    new_long = min(_round_up(long, patch_size), max_size // patch_size * patch_size)
    new_short = max(_round_up(new_long * short // long, patch_size), patch_size)
    return (new_long, new_short) if width >= height else (new_short, new_long)


def area_size(width: int, height: int, patch_size: int, max_size: int) -> tuple[int, int]:
    """Size of about ``max_size**2`` pixels at any aspect ratio, a multiple of the patch size.

    Both sides are divided by ``sqrt(width * height) / max_size``, which enlarges small images, and
    go up to a multiple of ``patch_size`` (EVEv2's rule). Computed with whole numbers, so that only
    the aspect ratio counts: EVEv2's floating-point division gives some squares (57x57, 69x69, ...)
    one patch more on each side than others.

    Args:
        width: Image width in pixels, >= 1.
        height: Image height in pixels, >= 1.
        patch_size: Side of a patch in pixels.
        max_size: Side in pixels of the square of equal area, >= ``patch_size``.

    Returns:
        (width, height) in pixels.

    Raises:
        ConfigError: A number is out of range.
    """
    _check_size('area_size', width, height, patch_size, max_size)

    def side(this: int, other: int) -> int:
        # Smallest n with (n * patch_size)**2 * other >= max_size**2 * this.
        area = -(-(max_size**2) * this // (patch_size**2 * other))
        return (isqrt(area - 1) + 1) * patch_size

    return side(width, height), side(height, width)


def _check_size(name: str, width: int, height: int, patch_size: int, max_size: int) -> None:
    if min(width, height, patch_size) < 1 or max_size < patch_size:
        raise ConfigError(
            f'{name}: needs width, height, patch_size >= 1 and max_size >= '
            f'patch_size, got {width}x{height}, {patch_size}, {max_size}'
        )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def mask_to_patches(mask: np.ndarray, grid: tuple[int, int], patch_size: int) -> np.ndarray:
    """Flag the patches that a mask covers.

    The mask is resized to the grid's pixels by PIL's nearest neighbour; a patch with any pixel of
    it is covered (authors' release). Two cases differ from the release, which may lose them: a
    single pixel (a point prompt) flags exactly the patch that contains it, and a thin mask that
    vanishes in the resize keeps the patch of its pixel nearest to its centre of gravity.

    Args:
        mask: bool (H, W) at the size of the original image.
        grid: (h, w) in patches.
        patch_size: Side of a patch in pixels.

    Returns:
        bool (h, w); all False only for an empty mask.
    """
    h, w = grid
    if np.count_nonzero(mask) == 1:
        return _nearest_to_centre(mask, grid)
    resized = mask.view(np.uint8)
    if mask.shape != (h * patch_size, w * patch_size):
        resized = np.asarray(
            Image.fromarray(resized).resize(
                (w * patch_size, h * patch_size), Image.Resampling.NEAREST
            )
        )
    flags = resized.reshape(h, patch_size, w, patch_size).any((1, 3))
    return flags if flags.any() else _nearest_to_centre(mask, grid)


def _nearest_to_centre(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    flags = np.zeros(grid, bool)
    rows, cols = np.nonzero(mask)
    if rows.size:
        i = np.argmin((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2)
        height, width = mask.shape
        row = int((rows[i] + 0.5) * grid[0] / height)
        col = int((cols[i] + 0.5) * grid[1] / width)
        flags[row, col] = True
    return flags


_RULES = dict(long_side=target_size, area=area_size)


@TRANSFORMS.register_module()
class ResizeToGrid(PixelTransform):
    """Resize the image to whole patches and paint the visual prompts on the patch grid.

    Required keys: ``img`` (uint8 (H, W, 3) | None), optional ``prompt_masks``, ``prompt_ids`` and
    ``max_size`` (int: a lower bound for this image, as :class:`InputPipeline
    <pixelsail_mm.apis.input_pipeline.InputPipeline>` sets it).

    Added keys: ``image`` (uint8 (3, h*p, w*p), resized by PIL with antialiasing, or None),
    ``grid`` ((h, w) in patches; (0, 0) without an image), ``prompt_map`` (int64 (h, w): -2 no
    prompt, K >= 0 covered by prompt K; where prompts overlap the later one in ``prompt_ids``,
    i.e. the smaller one, wins). Without an image ``prompt_map`` has shape (0, 0).

    Args:
        patch_size: Side of a patch in pixels.
        max_size: Bound of the size in pixels, in the sense of ``rule``.
        rule: ``'long_side'``: ``max_size`` bounds the long side, see :func:`target_size`.
            ``'area'``: all images get about ``max_size**2`` pixels, see :func:`area_size`.
        interpolation: ``'bilinear'`` (authors' release) or ``'bicubic'`` (EVEv2).

    Raises:
        ConfigError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        patch_size: int = 16,
        max_size: int = 1024,
        rule: str = 'long_side',
        interpolation: str = 'bilinear',
    ) -> None:
        if rule not in _RULES:
            raise ConfigError(f'ResizeToGrid: rule={rule!r}: use one of {list(_RULES)}')
        if interpolation not in _FILTERS:
            raise ConfigError(
                f'ResizeToGrid: interpolation={interpolation!r}: use one of {list(_FILTERS)}'
            )
        _RULES[rule](1, 1, patch_size, max_size)
        self.patch_size = patch_size
        self.max_size = max_size
        self.rule = rule
        self.interpolation = interpolation

    def grid(self, height: int, width: int, max_size: int | None = None) -> tuple[int, int]:
        """Grid (h, w) in patches of an image of this size in pixels.

        Args:
            height: Image height in pixels.
            width: Image width in pixels.
            max_size: In place of the setting of this name, if it is lower.
        """
        bound = min(max_size or self.max_size, self.max_size)
        new_width, new_height = _RULES[self.rule](width, height, self.patch_size, bound)
        return new_height // self.patch_size, new_width // self.patch_size

    def transform(self, results: Results) -> Results:
        """Add ``image``, ``grid`` and ``prompt_map``."""
        image = results['img']
        if image is None:
            results.update(image=None, grid=(0, 0), prompt_map=np.zeros((0, 0), np.int64))
            return results
        height, width = image.shape[:2]
        grid = self.grid(height, width, results.get('max_size'))
        size = (grid[1] * self.patch_size, grid[0] * self.patch_size)
        if size != (width, height):
            image = np.asarray(Image.fromarray(image).resize(size, _FILTERS[self.interpolation]))
        prompt_map = np.full(grid, NO_PROMPT, np.int64)
        for k, mask in zip(results.get('prompt_ids', ()), results.get('prompt_masks', ())):
            prompt_map[mask_to_patches(mask, grid, self.patch_size)] = k
        results.update(
            image=np.ascontiguousarray(image.transpose(2, 0, 1)), grid=grid, prompt_map=prompt_map
        )
        return results
