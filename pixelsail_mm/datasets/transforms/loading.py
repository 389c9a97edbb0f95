"""First stage of every pipeline: from a canonical record to arrays at image resolution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from pixelsail_mm.datasets.files.masks import decode_mask, decode_masks
from pixelsail_mm.datasets.files.pictures import (
    DECODING_ERRORS,
    IGNORE,
    MAX_PIXELS,
    ROTATE,
    check_pixels,
    is_rotated,
    to_rgb,
)
from pixelsail_mm.errors import BadSampleError, first_line
from pixelsail_mm.notices import warn_once
from pixelsail_mm.registry import TRANSFORMS
from pixelsail_mm.tokenization import NUM_PROMPTS

Results = dict[str, Any]
# Kinds of visual prompts and how their values are written.
_SPELLINGS = dict(
    mask='a mask',
    box='[x1, y1, x2, y2] with x1 < x2 and y1 < y2',
    point='[x, y]',
    scribble='[[x, y], ...]',
)
_SCRIBBLE_WIDTH = 3.0


def source_of(results: Results) -> str:
    """Name of the sample for error messages: its image, else its id, else ``'<memory>'``."""
    return str(results.get('img_path') or results.get('meta', {}).get('sample_id') or '<memory>')


def target_arrays(results: Results) -> dict[str, np.ndarray]:
    """Targets of the ``[SEG]`` tokens: the arrays ``gt_*``, of which ``gt_masks`` is one."""
    return {
        key: value
        for key, value in results.items()
        if key.startswith('gt_') and isinstance(value, np.ndarray)
    }


class PixelTransform(BaseTransform):
    """Base of the transforms whose attributes are their settings."""

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class LoadImage(PixelTransform):
    """Read the image as RGB, see :func:`~pixelsail_mm.datasets.files.pictures.to_rgb`.

    Required keys: ``img_path`` (str | None) or ``img`` (uint8 (H, W, 3) RGB array, used as it
    is). Neither of them means a text-only sample. Optional: ``height``, ``width`` as the
    annotation states them; they must agree with the file. ``exif``: takes the place
    of the argument for this image. ``notes``: a list.

    Added keys: ``img`` (uint8 (H, W, 3) RGB | None), ``ori_shape`` ((H, W); (0, 0) without an
    image), ``exif_rotated`` (True, if the picture was turned). What was read otherwise than it is
    stored, such as a scaled 16-bit picture, is appended to ``notes``, which the dataset counts;
    without such a list it is said once.

    Args:
        max_pixels: Larger images are rejected before they are decoded, so that one corrupt or
            hostile header cannot exhaust the memory of a worker; ``math.inf`` for no limit but
            Pillow's, of 179 million.
        exif: ``'ignore'`` keeps the stored pixels of pictures with an EXIF rotation, as the
            authors' release does, for annotations refer to them. ``'rotate'`` turns them, for
            pictures whose annotations, if any, were made on what a viewer shows. Questions about
            users' own pictures say ``'rotate'`` in their records.

    Raises:
        ValueError: ``exif`` is something else.
        BadSampleError: The file is missing, truncated, not an image, too large, or its size is
            not the one the annotation states.
    """

    def __init__(self, max_pixels: float = MAX_PIXELS, exif: str = IGNORE) -> None:
        if exif not in (IGNORE, ROTATE):
            raise ValueError(f"LoadImage.exif={exif!r}: use '{IGNORE}' or '{ROTATE}'")
        self.max_pixels = max_pixels
        self.exif = exif

    def transform(self, results: Results) -> Results:
        """Add ``img`` and ``ori_shape``."""
        image = results.get('img')
        if image is None and results.get('img_path'):
            image = self._read(str(results['img_path']), results)
        if image is None:
            results.update(img=None, ori_shape=(0, 0))
            return results
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise BadSampleError(
                source_of(results),
                'img',
                f'expected a non-empty uint8 (H, W, 3) RGB array, got {image.dtype} {image.shape}',
            )
        height, width = image.shape[:2]
        stated = (results.get('height') or height, results.get('width') or width)
        if tuple(stated) != (height, width):
            turned = (
                ' (if it carries an EXIF rotation and was annotated as a viewer shows it, '
                "set exif='rotate' in LoadImage)"
                if stated == (width, height)
                else ''
            )
            raise BadSampleError(
                source_of(results),
                'height, width',
                'the annotation states '
                f'{stated[0]}x{stated[1]} (HxW) but the image is {height}x{width}; use the image '
                f'the annotation was made for{turned}',
            )
        results.update(img=image, ori_shape=(height, width))
        return results

    def _read(self, path: str, results: Results) -> np.ndarray:
        exif = results.get('exif', self.exif)
        try:
            with Image.open(path) as image:
                check_pixels(image, self.max_pixels, path, 'img_path')
                rotated = exif == ROTATE and is_rotated(image)
                pixels, notes = to_rgb(image, exif)
        except FileNotFoundError as error:
            raise BadSampleError(
                path, 'img_path', 'no such image; check data_root and img_path of the dataset'
            ) from error
        except BadSampleError:
            raise
        except Image.DecompressionBombError as error:
            raise BadSampleError(
                path,
                'img_path',
                f'too large for max_pixels={self.max_pixels} of LoadImage, and for Pillow at all '
                f'({error}); shrink the image',
            ) from error
        except DECODING_ERRORS as error:
            raise BadSampleError(
                path,
                'img_path',
                f'cannot be decoded ({first_line(error)}); download or re-encode it again',
            ) from error
        if 'notes' in results:
            results['notes'].extend(notes)
        else:
            for note in notes:
                warn_once(note)
        if rotated:
            results['exif_rotated'] = True
        return pixels


@TRANSFORMS.register_module()
class LoadMasks(PixelTransform):
    """Decode the target masks, in the order of their ``[SEG]`` tokens.

    Required keys: ``ori_shape``; optional ``masks`` (list of COCO RLE, polygon list or array).

    Added key: ``gt_masks`` (bool (n, H, W); n = 0 when the record has none).

    Raises:
        BadSampleError: A mask cannot be decoded, does not have the image's size, or the sample
            has masks but no image.
    """

    def transform(self, results: Results) -> Results:
        """Add ``gt_masks``."""
        masks = results.get('masks') or []
        if masks and results['img'] is None:
            raise BadSampleError(
                source_of(results),
                'masks',
                f'{len(masks)} masks but no image; give img_path or remove the masks',
            )
        results['gt_masks'] = decode_masks(
            masks, *results['ori_shape'], source_of(results), 'masks'
        )
        return results


@TRANSFORMS.register_module()
class LoadIgnoreMasks(PixelTransform):
    """Decode the pixels to leave out of the evaluation, one mask per target mask.

    Required key: ``ori_shape``; optional ``ignore_masks`` (list of masks in any spelling, as long
    as ``masks``). Records without ``ignore_masks`` pass unchanged.

    Changed key: ``ignore_masks`` (bool (n, H, W), aligned with ``gt_masks``).

    Raises:
        BadSampleError: There are not as many masks as targets, or one cannot be decoded.
    """

    def transform(self, results: Results) -> Results:
        """Decode ``ignore_masks``, if there are any."""
        spellings = results.get('ignore_masks')
        if spellings is None:
            return results
        source, targets = source_of(results), results.get('masks') or []
        if len(spellings) != len(targets):
            raise BadSampleError(
                source,
                'ignore_masks',
                f'{len(spellings)} masks of pixels to ignore for {len(targets)} target masks; give '
                'one for each, empty where nothing is ignored',
            )
        results['ignore_masks'] = decode_masks(
            spellings, *results['ori_shape'], source, 'ignore_masks'
        )
        return results


@TRANSFORMS.register_module()
class LoadVisualPrompts(PixelTransform):
    """Turn masks, boxes, points and scribbles into prompt masks, large ones first.

    Required keys: ``ori_shape``; optional ``prompts``, a list of ``dict(id=K, mask=... | box=[x1,
    y1, x2, y2] | point=[x, y] | scribble=[[x, y], ...])`` in pixels of the original image,
    0 <= K < 15. A box covers every pixel it touches and is clipped to the image; a point is the
    one pixel that contains it. A scribble is a line through its points, drawn with a round pen of
    ``width`` pixels (a further key, >= 1, 3 by default) and clipped to the image: it covers the
    pixels whose centre is at most half the width away, and those that contain its points.

    Added keys: ``prompt_masks`` (bool (P, H, W)), ``prompt_ids`` (list[int]), ``prompt_kinds``
    (list of ``'mask'``, ``'box'``, ``'point'``, ``'scribble'``), all three in the same order.

    Args:
        sort_by_area: Sort by area, largest first and stable, so that smaller prompts overwrite
            larger ones, as the release does in training. Its inference keeps the order given;
            False reproduces that ("paper" protocol).

    Raises:
        BadSampleError: An id is out of range or used twice, a prompt is empty or lies outside the
            image, or the sample has prompts but no image.
    """

    def __init__(self, sort_by_area: bool = True) -> None:
        self.sort_by_area = sort_by_area

    def transform(self, results: Results) -> Results:
        """Add ``prompt_masks``, ``prompt_ids`` and ``prompt_kinds``."""
        prompts = results.get('prompts') or []
        source = source_of(results)
        if prompts and results['img'] is None:
            raise BadSampleError(
                source,
                'prompts',
                f'{len(prompts)} visual prompts but no image; give img_path or remove the prompts',
            )
        ids = [_prompt_id(prompt, source, i) for i, prompt in enumerate(prompts)]
        for i, k in enumerate(ids):
            if k in ids[:i]:
                raise BadSampleError(
                    source,
                    f'prompts[{i}].id',
                    f'prompt id {k} is used twice; give every prompt its own id',
                )
        height, width = results['ori_shape']
        masks = np.zeros((len(prompts), height, width), bool)
        kinds = []
        for i, prompt in enumerate(prompts):
            kinds.append(_draw(prompt, masks[i], source, f'prompts[{i}]'))
        order = range(len(ids))
        if self.sort_by_area:
            order = np.argsort([-np.count_nonzero(mask) for mask in masks], kind='stable')
        results['prompt_masks'] = masks[list(order)] if ids else masks
        results['prompt_ids'] = [ids[i] for i in order]
        results['prompt_kinds'] = [kinds[i] for i in order]
        return results


def _prompt_id(prompt: dict, source: str, i: int) -> int:
    k = prompt.get('id')
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k < NUM_PROMPTS:
        raise BadSampleError(
            source,
            f'prompts[{i}].id',
            f'prompt id {k} is out of range '
            f'0..{NUM_PROMPTS - 1}; use at most {NUM_PROMPTS} prompts a sample',
        )
    return int(k)


def _draw(prompt: dict, out: np.ndarray, source: str, key: str) -> str:
    """Set the pixels of ``prompt`` in ``out`` (bool (H, W)) and return its kind."""
    kinds = [kind for kind in _SPELLINGS if prompt.get(kind) is not None]
    if len(kinds) != 1:
        raise BadSampleError(
            source, key, f'needs exactly one of {list(_SPELLINGS)}, got {kinds or list(prompt)}'
        )
    (kind,) = kinds
    height, width = out.shape
    if kind == 'mask':
        out[:] = decode_mask(prompt['mask'], height, width, source, f'{key}.mask')
        if not out.any():
            raise BadSampleError(
                source,
                f'{key}.mask',
                'the prompt mask is empty; remove the prompt or mark at least one pixel',
            )
        return kind
    if kind == 'scribble':
        _draw_line(*_line(prompt, source, key), out)
    else:
        x1, y1, x2, y2 = _corners(prompt[kind], kind, source, f'{key}.{kind}')
        out[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    if not out.any():
        given = np.asarray(prompt[kind]).tolist()
        raise BadSampleError(
            source,
            f'{key}.{kind}',
            f'{kind} {str(given):.80} is empty or outside the image of '
            f'{width}x{height} pixels; give pixels of the original image, {_SPELLINGS[kind]}',
        )
    return kind


def _finite(values: Any) -> np.ndarray | None:
    """Numbers as a float array; None if they are none, or not finite."""
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def _corners(values: Any, kind: str, source: str, key: str) -> tuple[int, int, int, int]:
    """Half-open pixel rectangle (x1, y1, x2, y2) of a box or a point."""
    numbers = _finite(values)
    count = 2 if kind == 'point' else 4
    if numbers is None or numbers.size != count:
        raise BadSampleError(source, key, f'{kind} {values} must hold {count} finite numbers')
    if kind == 'point':
        x, y = map(math.floor, numbers.ravel().tolist())
        return x, y, x + 1, y + 1
    x1, y1, x2, y2 = numbers.ravel().tolist()
    if x2 <= x1 or y2 <= y1:
        return 0, 0, 0, 0
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def _line(prompt: dict, source: str, key: str) -> tuple[np.ndarray, float]:
    """Points (n, 2) and width of a scribble."""
    points, width = _finite(prompt['scribble']), _finite(prompt.get('width', _SCRIBBLE_WIDTH))
    if points is None or points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise BadSampleError(
            source,
            f'{key}.scribble',
            f'scribble {prompt["scribble"]!r:.80} must '
            'hold at least one point [x, y] of finite numbers',
        )
    if width is None or width.ndim or width < 1:
        raise BadSampleError(
            source,
            f'{key}.width',
            f'width {prompt["width"]} of the scribble must be a number of pixels, at least 1',
        )
    return points, float(width)


def _draw_line(points: np.ndarray, width: float, out: np.ndarray) -> None:
    """Draw a line with a round pen into ``out``, one window per segment."""
    size = np.array(out.shape[::-1])
    for start, end in zip(points, points[1:] if len(points) > 1 else points):
        low, high = np.minimum(start, end) - width / 2, np.maximum(start, end) + width / 2
        x1, y1 = np.clip(np.floor(low), 0, size).astype(int)
        x2, y2 = np.clip(np.ceil(high), 0, size).astype(int)
        rows, cols = np.mgrid[y1:y2, x1:x2] + 0.5
        length = np.hypot(*(end - start))
        x_step, y_step = (end - start) / length if length else (0.0, 0.0)
        # Of the segment, the point nearest to each pixel centre.
        along = np.clip((cols - start[0]) * x_step + (rows - start[1]) * y_step, 0, length)
        away = np.hypot(cols - start[0] - along * x_step, rows - start[1] - along * y_step)
        out[y1:y2, x1:x2] |= away <= width / 2
    pixels = np.floor(points)
    x, y = pixels[((pixels >= 0) & (pixels < size)).all(1)].astype(int).T
    out[y, x] = True
