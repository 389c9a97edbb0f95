"""Where an image lies: under the names of COCO's releases, in folders that not everybody has."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Mapping, Sequence

from pixelsail_mm.datasets.files.image_keys import coco_names
from pixelsail_mm.errors import MissingFilesError


def find_photo(name: str, folders: Sequence[str]) -> str:
    """Find an image in one of several folders.

    A photo of COCO is found under the name of either release: ``COCO_train2014_X.jpg`` is
    ``X.jpg`` of ``train2017``.

    Args:
        name: File name as the annotation has it, perhaps with a folder.
        folders: At least one; earlier ones and the given name come first.

    Returns:
        Path of the first file that exists; if there is none, the name in the first folder.
    """
    places = [osp.join(folder, other) for other in coco_names(name) for folder in folders]
    if len(places) == 1:
        return places[0]
    return next((path for path in places if osp.exists(path)), places[0])


def absent_choices(folders: Mapping[str, str]) -> dict[str, str]:
    """Of folders that are searched one after the other, those that need not exist.

    Args:
        folders: Key to path.

    Returns:
        Those that do not exist; none of them if no folder exists.
    """
    absent = {key: path for key, path in folders.items() if not osp.exists(path)}
    return absent if len(absent) < len(folders) else {}


def require_images(paths: Iterable[str | None], absent: Mapping[str, str], dataset: str) -> None:
    """Check that no image lies in a folder that does not exist.

    Args:
        paths: Paths of all images, as :func:`find_photo` gives them; None for text only.
        absent: Config key to path of the missing folders.
        dataset: Name of the dataset, for the message.

    Raises:
        MissingFilesError: An image is in no folder that exists; names the missing folders.
    """
    images = {path for path in paths if path is not None}
    lost = sorted(path for path in images if not osp.exists(path))
    if lost:
        note = (
            f'{len(lost)} of {len(images)} images, such as {osp.basename(lost[0])}, are in '
            'none of the other folders; without this key they are skipped one by one'
        )
        raise MissingFilesError([(f'{key}: {note}', path) for key, path in absent.items()], dataset)
