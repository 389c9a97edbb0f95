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

_CAPTIONS = Path(__file__).with_suffix('.json')


def make_skimage_photos(out: str | os.PathLike,
                        source: str | os.PathLike | None = None) -> dict[str, int]:
    """Write ``images/``, ``train.json`` and ``test.json`` for ``ImageCaptionDataset``.

    Args:
        out: Folder to create.
        source: Folder of the photos; that of the installed scikit-image by default.

    Returns:
        Number of photos by split.

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
        raise FileNotFoundError(f'{source}: {", ".join(absent)} not found; install scikit-image '
                                'from its wheel, which carries these photos')
    target = Path(out).absolute()
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f'{target} exists and is not empty; choose another folder, or '
                              'remove it')
    target.parent.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list] = {}
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as scratch:
        partial = Path(scratch) / target.name
        (partial / 'images').mkdir(parents=True)
        for name, entry in captions.items():
            shutil.copyfile(Path(source) / name, partial / 'images' / name)
            splits.setdefault(entry['split'], []).append(
                dict(image=name, caption=entry['caption'], id=Path(name).stem))
        for split, entries in splits.items():
            (partial / f'{split}.json').write_text(json.dumps(entries, indent=1) + '\n', 'utf-8')
        if target.exists():
            target.rmdir()
        partial.rename(target)
    return {split: len(entries) for split, entries in splits.items()}
