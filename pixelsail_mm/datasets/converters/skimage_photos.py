"""Free photos with captions, from the installed scikit-image.

Its wheel carries photos that anybody may use and pass on. The captions (``skimage_photos.json``
beside this file) were written for this project by looking at them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_CAPTIONS = Path(__file__).with_suffix('.json')
_CROP_SIDES = (0.4, 0.9)


def make_skimage_photos(
    out: str | os.PathLike, source: str | os.PathLike | None = None, crops: int = 0
) -> dict[str, int]:
    """Write ``images/``, ``train.json`` and ``test.json`` for ``ImageCaptionDataset``.

    Args:
        out: Folder to create.
        source: Folder of the photos; that of the installed scikit-image by default.
        crops: Further training images cut out of each training photo, every other one mirrored;
            the same in every run. Sixteen photos are soon learned by heart.

    Returns:
        Number of images by split.

    Raises:
        FileNotFoundError: ``source`` lacks photos.
        FileExistsError: ``out`` is there and not empty.
    """
    if source is None:
        import skimage

        source = Path(skimage.__file__).parent / 'data'
    captions = json.loads(_CAPTIONS.read_text('utf-8'))
    absent = [name for name in captions if not (Path(source) / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f'{source}: {", ".join(absent)} not found; install scikit-image '
            'from its wheel, which carries these photos'
        )
    target = Path(out).absolute()
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(
            f'{target} exists and is not empty; choose another folder, or remove it'
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list] = {}
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as scratch:
        partial = Path(scratch) / target.name
        (partial / 'images').mkdir(parents=True)
        for name, entry in captions.items():
            shutil.copyfile(Path(source) / name, partial / 'images' / name)
            entries = splits.setdefault(entry['split'], [])
            entries.append(dict(image=name, caption=entry['caption'], id=Path(name).stem))
            if entry['split'] == 'train':
                entries += _write_crops(partial / 'images' / name, entry['caption'], crops)
        for split, entries in splits.items():
            (partial / f'{split}.json').write_text(json.dumps(entries, indent=1) + '\n', 'utf-8')
        if target.exists():
            target.rmdir()
        partial.rename(target)
    return {split: len(entries) for split, entries in splits.items()}


def _write_crops(photo: Path, caption: str, number: int) -> list[dict]:
    """Cut parts out of a photo, beside it; give their entries."""
    rng = np.random.default_rng(0)
    entries = []
    with Image.open(photo) as image:
        image = image.convert('RGB')
    for i in range(number):
        width, height = (round(side * rng.uniform(*_CROP_SIDES)) for side in image.size)
        left, top = (
            int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height))
        )
        part = image.crop((left, top, left + width, top + height))
        name = f'{photo.stem}_part{i}.png'
        (ImageOps.mirror(part) if i % 2 else part).save(photo.parent / name)
        entries.append(
            dict(image=name, caption=f'A part of a picture: {caption}', id=Path(name).stem)
        )
    return entries
