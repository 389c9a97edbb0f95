"""Which image a path shows, so that the same photo is found under several names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pixelsail_mm.errors import AnnotationError

# COCO_train2014_000000000009.jpg and train2017/000000000009.jpg are one photo.
_RELEASES = ('', 'COCO_train2014_', 'COCO_val2014_')
_COCO = re.compile(r'(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})')


def image_key(path: str | os.PathLike) -> str:
    """Name an image independently of the folder and year of COCO it lies in.

    Args:
        path: Path of the image; it need not exist.

    Returns:
        ``'coco:9'`` for names of COCO's form, else the absolute path.
    """
    match = _COCO.fullmatch(Path(path).stem)
    return f'coco:{int(match.group(1))}' if match else os.path.abspath(path)


def coco_names(name: str) -> list[str]:
    """File names of a photo in the releases of COCO.

    Args:
        name: A file name, perhaps with a folder.

    Returns:
        The name, and for names of COCO's form the others: ``X``, ``COCO_train2014_X`` and
        ``COCO_val2014_X``.
    """
    folder, file = os.path.split(name)
    stem, suffix = os.path.splitext(file)
    match = _COCO.fullmatch(stem)
    if not match:
        return [name]
    others = (f'{release}{match.group(1)}{suffix}' for release in _RELEASES)
    return list(dict.fromkeys([name, *(os.path.join(folder, other) for other in others)]))


def write_image_keys(keys: Iterable[str], path: str | os.PathLike) -> None:
    """Write a list that ``exclude_images`` of the readers takes: one key per line, sorted."""
    Path(path).write_text(''.join(f'{key}\n' for key in sorted(keys)), encoding='utf-8')


def read_image_keys(path: str | os.PathLike) -> frozenset[str]:
    """Read a list of images to leave out.

    Args:
        path: Text file with a key (see :func:`image_key`) or path per line; blank lines and lines
            that begin with ``#`` are ignored.

    Raises:
        AnnotationError: The file does not exist or is not text.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(
            str(path),
            'exclude_images',
            f'cannot be read ({error}); write it '
            'with tools/misc/check_data.py CONFIG --write-overlap FILE',
        ) from error
    names = [line.strip() for line in lines if line.strip() and not line.startswith('#')]
    return frozenset(name if name.startswith('coco:') else image_key(name) for name in names)
