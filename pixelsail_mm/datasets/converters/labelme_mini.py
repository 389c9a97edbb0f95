"""Three real photos with instance masks, in the RefCOCO layout.

The source archive of the PyPI package ``labelme`` holds, as an example of its annotation format,
three photos of VOC2011 with the outlines of 12 instances. They are the only photos with masks that
an ordinary package registry carries. The referring sentences (``labelme_mini.json`` beside this
file) were written for this project by looking at the photos. The photos stay with their owners'
terms (VOC, Flickr): they are downloaded and written where the user says, and never committed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pixelsail_mm.datasets.files.annotation_files import require_keys
from pixelsail_mm.datasets.files.annotation_writer import RefCOCOWriter, dump_json
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.refcoco import clean_phrase
from pixelsail_mm.downloads.archives import check_sha256, read_members
from pixelsail_mm.downloads.pip_index import download
from pixelsail_mm.errors import AnnotationError, BadSampleError

PACKAGE = 'labelme'
SDIST = 'labelme-6.3.1.tar.gz'
SDIST_SHA256 = '2947e0d8341a92faa7b3ee50cf4b672f838051c6bf24892526e95b64fd3a707e'
MEMBERS = 'labelme-6.3.1/examples/instance_segmentation/data_annotated'
GENERATOR = 'labelme_mini'
LICENCE = (
    'The photos are from PASCAL VOC2011 and follow its terms and those of Flickr: use them '
    'for research and tests, do not redistribute them.'
)
_SENTENCES = Path(__file__).with_suffix('.json')
# Outlines of what the annotators left undecided; no instance.
_IGNORED_LABEL = '__ignore__'


def make_labelme_mini(
    out: str | os.PathLike,
    archive: str | os.PathLike | None = None,
    overwrite: bool = False,
    sha256: str = SDIST_SHA256,
) -> dict[str, Any]:
    """Write the three photos with masks and sentences into a folder.

    ``instances.json``, ``refs(unc).p`` (splits ``train``, two photos, and ``test``, the third) and
    ``images/``, which :class:`~pixelsail_mm.datasets.RefCOCODataset` reads with
    ``data_root=out, data_prefix=dict(img_path='images')``; further ``info.json`` and a
    ``.gitignore`` of everything.

    Args:
        out: Folder to create.
        archive: The source archive, if it is here already; downloaded otherwise, from the package
            index that pip is set to.
        overwrite: Replace a folder written by this function before.
        sha256: Checksum of the archive, compared before it is opened.

    Returns:
        What ``info.json`` holds: counts, source and licence note.

    Raises:
        DownloadError: The archive cannot be downloaded.
        ArchiveError: It is not the expected archive.
        AnnotationError: Its content does not fit the sentences.
        FileExistsError: ``out`` holds something else.
    """
    target = Path(out).absolute()
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as scratch:
        path = Path(archive) if archive else download(PACKAGE, SDIST, Path(scratch), sha256)
        check_sha256(path, sha256)
        members = read_members(path, MEMBERS, ('.json', '.jpg'))
        partial = Path(scratch) / target.name
        info = _convert(members, partial, str(path) if archive else SDIST)
        info.update(package=SDIST, sha256=sha256, licence=LICENCE)
        dump_json(info, partial / 'info.json')
        (partial / '.gitignore').write_text('*\n', encoding='utf-8')
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    return info


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    info = target / 'info.json'
    if not info.is_file() or json.loads(info.read_text('utf-8')).get('generator') != GENERATOR:
        raise FileExistsError(
            f'{target} exists and is not a {GENERATOR} data set; it is left '
            'untouched, choose another folder'
        )
    if not overwrite:
        raise FileExistsError(
            f'{target} already holds the {GENERATOR} data set; choose another '
            'folder, or replace it with --overwrite'
        )


def _convert(members: dict[str, bytes], folder: Path, source: str) -> dict[str, Any]:
    """Write photos and annotations; ``source`` names the archive in errors."""
    table = json.loads(_SENTENCES.read_text('utf-8'))
    labels = {entry['label'] for photo in table.values() for entry in photo['instances']}
    writer = RefCOCOWriter(sorted(labels))
    counts = {name: Counter() for name in ('images', 'instances', 'sentences')}
    (folder / 'images').mkdir(parents=True)
    for stem, photo in table.items():
        where = f'{source}/{MEMBERS}/{stem}.json'
        size, outlines, image_name = _read_photo(members, stem, where)
        (folder / 'images' / image_name).write_bytes(members[image_name])
        wanted = [entry['label'] for entry in photo['instances']]
        if [label for label, _ in outlines] != wanted:
            raise AnnotationError(
                where,
                'shapes',
                f'the instances are {[n for n, _ in outlines]}, '
                f'but the sentences of this project are for {wanted}; use '
                f'{SDIST}',
            )
        image_id = writer.add_image(image_name, size)
        counts['images'][photo['split']] += 1
        for (label, polygons), entry in zip(outlines, photo['instances']):
            ann_id = _add_instance(writer, image_id, label, polygons, size, where)
            sentences = [
                dict(text=text, sent=clean_phrase(text), kind='photo')
                for text in entry['sentences']
            ]
            writer.add_ref(ann_id, photo['split'], sentences)
            counts['instances'][photo['split']] += 1
            counts['sentences'][photo['split']] += len(entry['sentences'])
    writer.write(folder)
    return dict(generator=GENERATOR, **{name: dict(count) for name, count in counts.items()})


def _read_photo(
    members: dict[str, bytes], stem: str, where: str
) -> tuple[tuple[int, int], list[tuple[str, list]], str]:
    """Size (H, W), instances (label, polygons) and file name of one photo."""
    if f'{stem}.json' not in members:
        raise AnnotationError(where, 'data_annotated', f'the archive lacks it; use {SDIST}')
    try:
        content = json.loads(members[f'{stem}.json'])
    except ValueError as error:
        raise AnnotationError(
            where, 'json', f'no valid JSON ({error}); get the archive again'
        ) from error
    require_keys(content, ('shapes', 'imagePath', 'imageHeight', 'imageWidth'), where, 'photo')
    name = content['imagePath']
    if name != f'{stem}.jpg' or name not in members:
        raise AnnotationError(
            where,
            'imagePath',
            f'{name!r} is not the photo beside the annotation, {stem}.jpg; use {SDIST}',
        )
    size = content['imageHeight'], content['imageWidth']
    try:
        with Image.open(io.BytesIO(members[name])) as image:
            true_size = image.height, image.width
    except OSError as error:
        raise AnnotationError(
            where, name, f'cannot be decoded ({error}); get the archive again'
        ) from error
    if size != true_size:
        raise AnnotationError(
            where,
            'imageHeight, imageWidth',
            f'{size}, but the photo is {true_size} (H, W); use {SDIST}',
        )
    return size, _instances(content['shapes'], where), name


def _instances(shapes: list, where: str) -> list[tuple[str, list]]:
    """Label and polygons of each instance, in the order of their first shapes.

    Shapes of one label with one ``group_id`` are parts of one instance; a shape without
    ``group_id`` is an instance of its own.
    """
    found: dict[tuple, list] = {}
    for i, shape in enumerate(shapes):
        require_keys(shape, ('label', 'points'), where, f'shapes[{i}]')
        if shape['label'] == _IGNORED_LABEL:
            continue
        if shape.get('shape_type', 'polygon') != 'polygon':
            raise AnnotationError(
                where,
                f'shapes[{i}].shape_type',
                f'{shape["shape_type"]!r} is not read, only polygons are; use {SDIST}',
            )
        group = shape.get('group_id')
        key = (shape['label'], 'group', group) if group is not None else (shape['label'], i)
        found.setdefault(key, []).append([float(v) for point in shape['points'] for v in point])
    return [(key[0], polygons) for key, polygons in found.items()]


def _add_instance(
    writer: RefCOCOWriter,
    image_id: int,
    label: str,
    polygons: list,
    size: tuple[int, int],
    where: str,
) -> int:
    """Register an instance with the box and the area of its mask."""
    mask = decode_mask(polygons, *size, where, label)
    if not mask.any():
        raise BadSampleError(where, label, 'an outline that covers no pixel; get the archive again')
    box = list(cv2.boundingRect(mask.view(np.uint8)))
    return writer.add_annotation(image_id, label, polygons, box, int(mask.sum()))
