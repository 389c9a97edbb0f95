"""Names of images that stay when the folders of a data set move."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Mapping
from pathlib import PurePath

from pixelsail_mm.errors import ConfigError

Roots = str | os.PathLike | Mapping[str, str | os.PathLike]


def image_name(path: str | os.PathLike, roots: Roots) -> str:
    """Name an image by its path relative to the folder it lies in.

    Links are not followed: what counts is the path that the annotations lead to.

    Args:
        path: Path of the image.
        roots: A folder, or several as ``{label: folder}``; labels then begin the names. Of several
            that hold the image, the innermost counts.

    Returns:
        E.g. ``'train2017/1.jpg'``, with labels ``'coco/train2017/1.jpg'``.

    Raises:
        ConfigError: The image is outside of all of them.
    """
    labelled = roots if isinstance(roots, Mapping) else {'': roots}
    names = [(label, osp.relpath(path, root)) for label, root in labelled.items()]
    inside = [
        (len(name), label, name) for label, name in names if name.split(osp.sep)[0] != osp.pardir
    ]
    if not inside:
        raise ConfigError(
            f'{path}: lies outside of image_root '
            f'({", ".join(map(str, labelled.values()))}); correct image_root, or '
            'give several as {label: folder}'
        )
    _, label, name = min(inside)
    return PurePath(label, name).as_posix()
