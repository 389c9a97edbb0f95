"""From a picture of any mode to 8-bit RGB: the one place for training, evaluation and questions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pixelsail_mm.errors import BadSampleError

#: Pixels of the largest picture that is decoded unless a config says otherwise: 8192 x 8192, more
#: than the 50 million of phones. Decoding takes 7 to 11 bytes for each.
MAX_PIXELS = 2**26
IGNORE, ROTATE = 'ignore', 'rotate'
ROTATION_IGNORED = 'picture whose EXIF rotation was ignored, its stored pixels were taken'
ON_WHITE = 'picture with transparent pixels, which were put on white'
NOT_FINITE = 'picture with pixels that are not finite, which became black or white'
BY_RANGE = 'picture scaled from its lowest and highest pixel to 8 bits'
BY_BITS = 'picture of {} bits scaled to 8 bits'
# What pixels of whole numbers may fill. A picture is taken to have as many bits as its highest
# pixel needs, in these steps: cameras and scanners store 12 bits in files of 16.
_BITS = (8, 12, 16)
#: What Pillow's decoders raise on corrupt bytes (a cut-off file is an OSError), and :func:`to_rgb`.
DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    RuntimeError,  # of AVIF's decoder
    MemoryError,  # a damaged header asks for more than there is
    Image.DecompressionBombError,  # some formats check the size while a file is opened
)
# Rows that are converted at a time; intermediate copies of a whole picture would double its memory.
_ROWS = 512
_DEEP_MODES = ('I', 'F')  # and all that begin with 'I;'


def check_pixels(image: Image.Image, max_pixels: float, source: str, key: str) -> None:
    """Refuse a picture that is too large, by its header; nothing has been decoded yet.

    Args:
        image: What ``Image.open`` gives.
        max_pixels: Most pixels that are accepted.
        source: Its file, or other name, for the error.
        key: Key of a record that names it.

    Raises:
        BadSampleError: It has more.
    """
    if image.width * image.height > max_pixels:
        raise BadSampleError(
            source,
            key,
            f'image of {image.width}x{image.height} pixels exceeds '
            f'max_pixels={max_pixels}; raise LoadImage.max_pixels in the pipeline of the config, '
            'or shrink the image',
        )


def refuse_program(image: Image.Image) -> None:
    """Raise ValueError for PostScript, whatever its file is called; Ghostscript would run it."""
    if image.format == 'EPS':
        raise ValueError('PostScript is a program, and is not run')


def is_rotated(image: Image.Image) -> bool:
    """Tell whether the EXIF data of a picture ask to turn or mirror it (values 2 to 8)."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def shown_size(image: Image.Image, exif: str) -> tuple[int, int]:
    """(height, width) of the pixels that :func:`to_rgb` gives, by the header."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    sides = image.height, image.width
    return sides[::-1] if exif == ROTATE and orientation in range(5, 9) else sides


def to_rgb(image: Image.Image, exif: str = IGNORE) -> tuple[np.ndarray, list[str]]:
    """Give the pixels of a picture as people see them.

    * Grey of 16 or 32 bits: scaled by 8, 12 or 16 bits, the fewest that its highest pixel needs;
      with negative or larger numbers by its range.
    * Float: 0..1 as it is, else by the range of its finite pixels; NaN and -inf become black, inf
      white.
    * Transparency: on white, for the colours of transparent pixels mean nothing.

    Pillow's ``convert('RGB')`` cuts the first two at 255 and shows the hidden colours.

    Args:
        image: Any picture that Pillow opens.
        exif: ``'ignore'`` keeps the stored pixels, as the authors' release does; ``'rotate'``
            turns the picture as its EXIF data say.

    Returns:
        (uint8 (H, W, 3) RGB, what was read otherwise than it is stored, in words).

    Raises:
        ValueError: No pixel is finite, or the file is a PostScript program.
    """
    refuse_program(image)
    notes = []
    if is_rotated(image):
        if exif == ROTATE:
            image = ImageOps.exif_transpose(image)
        else:
            notes.append(ROTATION_IGNORED)
    if image.mode in _DEEP_MODES or image.mode.startswith('I;'):
        grey, more = _to_8_bits(np.array(image))
        return np.repeat(grey[..., None], 3, axis=2), notes + more
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        if strip.has_transparency_data:
            strip = strip.convert('RGBA')
            if strip.getextrema()[3][0] < 255:
                if ON_WHITE not in notes:
                    notes.append(ON_WHITE)
                strip = Image.alpha_composite(Image.new('RGBA', strip.size, 'white'), strip)
        pixels[top : top + strip.height] = np.asarray(strip.convert('RGB'))
    return pixels, notes


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """First row and picture of each piece of a picture, from top to bottom."""
    for top in range(0, image.height, _ROWS):
        yield top, image.crop((0, top, image.width, min(top + _ROWS, image.height)))


def _to_8_bits(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Scale grey pixels (H, W) to uint8."""
    notes = []
    finite = np.isfinite(pixels)
    if not finite.any():
        raise ValueError('no pixel is finite')
    low, high = (float(bound(pixels[finite])) for bound in (np.min, np.max))
    if pixels.dtype.kind == 'f':
        if not finite.all():
            notes.append(NOT_FINITE)
            pixels = np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)
        if 0 <= low and high <= 1:
            return _scale(pixels, 0, 1), notes
    elif 0 <= low:
        bits = next((bits for bits in _BITS if high < 2**bits), None)
        if bits is not None:
            return _scale(pixels, 0, 2**bits - 1), [BY_BITS.format(bits)] if bits > 8 else []
    return _scale(pixels, low, high), [*notes, BY_RANGE]


def _scale(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (pixels.astype(np.float64) - low) / ((high - low) or 1)
    return np.round(share * 255).astype(np.uint8)
