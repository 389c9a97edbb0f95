"""A source archive of the layout of labelme's, with drawn photos."""

import gzip
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from pixelsail_mm.datasets.converters.labelme_mini import MEMBERS

SIZE = 60, 40
# Rectangles (left, top, right, bottom) by label and group, in the order of the real archive.
PHOTOS = {
    '2011_000003': [
        ('person', None, (2, 2, 12, 30)),
        ('person', 0, (30, 5, 50, 35)),
        ('person', 0, (27, 10, 30, 14)),
        ('bottle', None, (24, 8, 27, 20)),
        ('__ignore__', None, (0, 35, 60, 40)),
    ],
    '2011_000006': [
        ('person', None, (2, 2, 10, 20)),
        ('person', None, (12, 2, 20, 20)),
        ('person', None, (22, 2, 30, 20)),
        ('chair', None, (30, 22, 58, 38)),
        ('person', None, (50, 1, 55, 4)),
        ('__ignore__', None, (56, 1, 59, 4)),
        ('sofa', 0, (0, 20, 8, 26)),
        ('sofa', 0, (33, 10, 48, 20)),
    ],
    '2011_000025': [
        ('bus', None, (10, 2, 40, 38)),
        ('bus', None, (0, 10, 9, 30)),
        ('car', None, (42, 20, 60, 30)),
    ],
}


def drawn_files() -> dict:
    """Content of the archive by path inside it; annotations as dicts."""
    files = {}
    for seed, (stem, shapes) in enumerate(PHOTOS.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
        photo = io.BytesIO()
        Image.fromarray(pixels).save(photo, 'JPEG')
        files[f'{MEMBERS}/{stem}.jpg'] = photo.getvalue()
        files[f'{MEMBERS}/{stem}.json'] = dict(
            version='4.0.0',
            imagePath=f'{stem}.jpg',
            imageHeight=SIZE[1],
            imageWidth=SIZE[0],
            imageData=None,
            shapes=[
                dict(
                    label=label,
                    group_id=group,
                    shape_type='polygon',
                    flags={},
                    points=[[x1, y1], [x2, y1], [x2, y2], [x1, y2]],
                )
                for label, group, (x1, y1, x2, y2) in shapes
            ],
        )
    files['labelme-6.3.1/setup.py'] = b'raise SystemExit("must not run")'
    return files


@pytest.fixture
def files():
    """Content of the archive, to be changed."""
    return drawn_files()


@pytest.fixture
def pack(tmp_path):
    """Write an archive of files (dicts as JSON) and tar members; gives path and checksum."""

    def pack(files, *members) -> tuple:
        path = tmp_path / 'labelme-6.3.1.tar.gz'
        # Without the time: two archives of the same files are the same bytes.
        with (
            gzip.GzipFile(path, 'wb', mtime=0) as packed,
            tarfile.open(fileobj=packed, mode='w') as archive,
        ):
            for name, content in files.items():
                content = json.dumps(content).encode() if isinstance(content, dict) else content
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            for member in members:
                archive.addfile(member, io.BytesIO(bytes(member.size)))
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    return pack
