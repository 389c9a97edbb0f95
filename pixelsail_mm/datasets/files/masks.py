"""Decoding of every mask spelling that annotations use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pixelsail_mm.datasets.files.pictures import DECODING_ERRORS, refuse_program
from pixelsail_mm.errors import BadSampleError, first_line

_PARTS = ('target', 'ignore')
# Far outside of any image, safe to draw in whole numbers, and drawn in half a second.
_MAX_COORDINATE = 1 << 20


def decode_mask(mask: Any, height: int, width: int, file: str | None, key: str) -> np.ndarray:
    """Decode one mask to a boolean array at image resolution.

    Polygons of one mask are joined by a logical OR. The authors' release adds them, which gives 2
    where they overlap; that is not followed.

    Args:
        mask: One of

            * a COCO RLE dict (``counts`` compressed as str/bytes, or an uncompressed list);
            * a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels (an empty list is an empty
              mask) and of RLE dicts, which are joined;
            * ``dict(png=path)``: an image in which non-zero pixels are inside;
            * ``dict(png=path, ids=[...])``: a COCO panoptic PNG and the ids of its segments
              (id = R + 256 G + 65536 B) that belong to the mask. The file is decoded once for all
              masks of a sample;
            * ``dict(union=[...])``: masks of any of these spellings, joined;
            * ``dict(painted=[dict(points=[[x, y], ...], ignore=bool), ...])``: outlines, filled
              and painted over each other, the large ones first (ReasonSeg). Inside are the pixels
              that show a shape without ``ignore``; with the further key ``part='ignore'`` those
              that show one with it;
            * an (H, W) array in which non-zero means inside.
        height: Image height in pixels.
        width: Image width in pixels.
        file: File to name in errors.
        key: Record key to name in errors, e.g. ``'masks[2]'``.

    Returns:
        bool (height, width); may share memory with an array input.

    Raises:
        BadSampleError: The mask is malformed or not of the image's size.
    """
    if isinstance(mask, dict) and isinstance(mask.get('union'), (list, tuple)):
        decoded = np.zeros((height, width), bool)
        for i, part in enumerate(mask['union']):
            decoded |= decode_mask(part, height, width, file, f'{key}.union[{i}]')
    elif isinstance(mask, dict) and isinstance(mask.get('png'), str):
        decoded = _decode_png(mask, height, width, key)
    elif isinstance(mask, dict) and 'painted' in mask:
        decoded = _decode_painted(mask, height, width, file, key)
    elif isinstance(mask, dict):
        decoded = _decode_rle(mask, height, width, file, key)
    elif isinstance(mask, (list, tuple)):
        decoded = _decode_parts(mask, height, width, file, key)
    elif isinstance(mask, np.ndarray):
        decoded = mask if mask.dtype == bool else mask != 0
    else:
        raise BadSampleError(
            file,
            key,
            f'unknown mask type {type(mask).__name__}; give a COCO RLE '
            'dict, a list of polygons or RLE dicts, '
            'dict(png=...), dict(union=...), '
            'dict(painted=...) or an (H, W) array',
        )
    _check_size(decoded.shape, (height, width), file, key)
    return decoded


def _check_size(size: tuple, wanted: tuple, file: str | None, key: str) -> None:
    """Refuse a mask that does not have the size (H, W) of its image."""
    if size != wanted:
        raise BadSampleError(
            file,
            key,
            f'mask size {size} (H, W) differs from the image '
            f'size {wanted}; masks must be drawn on the original image',
        )


def decode_masks(
    masks: Sequence[Any], height: int, width: int, file: str | None, key: str
) -> np.ndarray:
    """Decode several masks, see :func:`decode_mask`, to bool (n, height, width)."""
    decoded = np.zeros((len(masks), height, width), bool)
    for i, mask in enumerate(masks):
        decoded[i] = decode_mask(mask, height, width, file, f'{key}[{i}]')
    return decoded


@lru_cache(maxsize=2)
def _read_segment_ids(path: str, height: int, width: int) -> np.ndarray:
    """Segment id of every pixel of a panoptic PNG, int32 (H, W); a grey PNG holds it directly."""
    with Image.open(path) as image:
        refuse_program(image)
        # By the header: whatever a broken file says, it takes no more memory than the image.
        _check_size((image.height, image.width), (height, width), path, 'png')
        pixels = np.array(
            image if image.mode in ('L', 'I', 'I;16', '1') else image.convert('RGB'), np.int32
        )
    if pixels.ndim == 3:
        pixels = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    pixels.flags.writeable = False
    return pixels


def _decode_png(mask: dict, height: int, width: int, key: str) -> np.ndarray:
    path, ids = mask['png'], mask.get('ids')
    try:
        pixels = _read_segment_ids(path, height, width)
    except FileNotFoundError as error:
        raise BadSampleError(
            path, key, 'no such mask file; check the folder of the masks in data_prefix'
        ) from error
    except BadSampleError as error:
        raise BadSampleError(path, key, error.reason) from error
    except DECODING_ERRORS as error:
        raise BadSampleError(
            path, key, f'cannot be decoded ({first_line(error)}); download it again'
        ) from error
    if ids is None:
        return pixels != 0
    return pixels == ids[0] if len(ids) == 1 else np.isin(pixels, ids)


def _decode_rle(rle: dict, height: int, width: int, file: str | None, key: str) -> np.ndarray:
    size = rle.get('size')
    if 'counts' not in rle or not isinstance(size, (list, tuple)) or [*size] != [height, width]:
        raise BadSampleError(
            file,
            key,
            f'RLE needs counts and size {[height, width]} (the image '
            f'size H, W), got keys {list(rle)} and size {size!r:.60}',
        )
    try:
        runs = _run_lengths(rle['counts'])
        if not ((runs >= 0) & (runs <= height * width)).all() or runs.sum() != height * width:
            raise ValueError(f'run lengths sum to {runs.sum()}, not {height * width}')
    except (TypeError, ValueError, OverflowError) as error:
        raise BadSampleError(file, key, f'broken RLE ({error}); export the mask again') from error
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _run_lengths(counts: Any) -> np.ndarray:
    """Run lengths (n,) of an RLE, int64, outside of the mask first; they may be of any size.

    Ours instead of pycocotools' ``decode``: that writes past its memory where the text of the
    lengths is damaged, and where they end early gives memory that it never filled.

    Raises:
        ValueError: They are neither a list of whole numbers nor their compressed text.
    """
    if isinstance(counts, (list, tuple)):
        numbers = np.asarray(counts)
        if numbers.ndim != 1 or (numbers.astype(np.int64) != numbers).any():
            raise ValueError('counts must be whole numbers')
        return numbers.astype(np.int64)
    text = counts.encode('ascii') if isinstance(counts, str) else bytes(memoryview(counts))
    # Six bits a character, as in COCO's API: five of the number, low ones first, and "more follow".
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    lengths = np.diff(ends, prepend=-1)
    if not len(ends) or ends[-1] + 1 < len(codes) or lengths.max() > 6:
        raise ValueError('the text of counts is cut off or empty')
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError('counts has characters that no run length has')
    starts = ends + 1 - lengths
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << 5 * places, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    # From the fourth one on they are differences to the last but one.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _decode_parts(parts, height: int, width: int, file: str | None, key: str) -> np.ndarray:
    decoded = np.zeros((height, width), bool)
    for i, part in enumerate(parts):
        decode = _decode_rle if isinstance(part, dict) else _decode_polygon
        decoded |= decode(part, height, width, file, f'{key}[{i}]')
    return decoded


def _decode_polygon(polygon, height: int, width: int, file: str | None, key: str) -> np.ndarray:
    try:
        points = np.asarray(polygon, float)
    except (TypeError, ValueError, OverflowError):
        points = np.full(0, np.nan)
    if (
        points.ndim != 1
        or points.size < 6
        or points.size % 2
        or not (np.abs(points) <= _MAX_COORDINATE).all()
    ):
        raise BadSampleError(
            file,
            key,
            'a polygon needs at least 3 points as a flat list [x1, y1, '
            f'x2, y2, ...] of finite numbers, got {polygon!r:.60}',
        )
    (rle,) = coco_mask.frPyObjects([points.tolist()], height, width)
    return coco_mask.decode(rle).astype(bool)


def _decode_painted(mask: dict, height: int, width: int, file: str | None, key: str) -> np.ndarray:
    part = mask.get('part', 'target')
    if part not in _PARTS or not isinstance(mask['painted'], (list, tuple)):
        raise BadSampleError(
            file,
            key,
            'a painted mask needs a list of shapes and a part of '
            f'{list(_PARTS)}, got {type(mask["painted"]).__name__} and {part!r}',
        )
    shapes = []
    for i, shape in enumerate(mask['painted']):
        points = _outline(shape, file, f'{key}.painted[{i}]')
        stencil = np.zeros((height, width), np.uint8)
        # Also draws the outline, one pixel wide; a single point gives one pixel.
        cv2.fillPoly(stencil, [points], 1)
        shapes.append((stencil.astype(bool), 'ignore' if shape.get('ignore') else 'target'))
    decoded = np.zeros((height, width), bool)
    # Stable: of two shapes of one size, the later one is on top.
    for stencil, kind in sorted(shapes, key=lambda shape: -np.count_nonzero(shape[0])):
        decoded[stencil] = kind == part
    return decoded


def _outline(shape: Any, file: str | None, key: str) -> np.ndarray:
    """Points of a shape as int32 (n, 2); fractions of a pixel are cut off."""
    try:
        points = np.asarray(shape['points'], float)
    except (KeyError, TypeError, ValueError, OverflowError):
        points = np.full(0, np.nan)
    if (
        points.ndim != 2
        or points.shape[1:] != (2,)
        or not len(points)
        or not (np.abs(points) <= _MAX_COORDINATE).all()
    ):
        raise BadSampleError(
            file,
            key,
            f"a shape needs 'points', at least one [x, y] of finite numbers, got {shape!r:.60}",
        )
    return points.astype(np.int32)


def mask_to_rle(mask: np.ndarray) -> dict:
    """Compressed COCO run lengths of a bool (H, W) mask, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(rle['size']), counts=rle['counts'].decode('ascii'))
