"""From a folder of images, a mask file per object and a table of phrases to our own format."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.files.pictures import (
    DECODING_ERRORS,
    IGNORE,
    ROTATE,
    is_rotated,
    shown_size,
)
from pixelsail_mm.errors import AnnotationError, BadSampleError, ConfigError
from pixelsail_mm.tokenization import SEG_TOKEN, TASK_TOKENS, VISION_TOKENS

_NEEDED = ('image', 'mask', 'phrase')
_SPLITS = ('train', 'val', 'test')
_BLURRED = ('.jpg', '.jpeg')
_TOKEN = re.compile('|'.join(map(re.escape, (*TASK_TOKENS, *VISION_TOKENS))) + r'|<Prompt\d+>')
Progress = Callable[[Iterable], Iterable]


@dataclass
class Conversion:
    """Result of converting a table.

    Attributes:
        images: Split to number of images; the files written are ``{split}.json``.
        turns: Split to number of phrases.
        skipped: Kind of fault to the messages of the rows that were left out for it.
    """

    images: dict[str, int] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


class _BadRowError(ValueError):
    """A row that cannot be used: kind of fault, and what to do about this one."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    mask: str
    phrase: str
    split: str


def masks_to_pixel_chat(
    folder: str | os.PathLike,
    table: str = 'masks.csv',
    val_share: float = 0.1,
    question: str = 'Please segment {x}.',
    overwrite: bool = False,
    progress: Progress = lambda items: items,
    exif: str | None = None,
) -> Conversion:
    """Write ``train.json`` and ``val.json`` for :class:`~pixelsail_mm.datasets.PixelChatDataset`.

    The folder holds ``images``, ``masks`` and the table, in CSV with the columns ``image``,
    ``mask`` (files below these two folders), ``phrase`` and, if wanted, ``split`` (``train``,
    ``val`` or ``test``); others are ignored. An entry is an image, a turn one of its phrases; masks
    with the same phrase are joined. A row that cannot be used is left out and counted.

    Args:
        folder: The folder; the files are written into it.
        table: Name of the table in it.
        val_share: Share of the images without a split that go to ``val``, by a checksum of their
            names: an image stays where it is when others come. At least one, if there are two.
        question: What is asked, with ``{x}`` for the phrase.
        overwrite: Replace files of these names.
        progress: Wraps the rows to show how far it is.
        exif: Of pictures with an EXIF rotation: ``'rotate'`` if the masks are of what viewers and
            annotation tools show, ``'ignore'`` if of the stored pixels. None: as the size of a
            mask says; rows where it fits both are left out.

    Raises:
        FileNotFoundError: There is no table.
        FileExistsError: There are files already.
        AnnotationError: The table lacks columns, or no row can be used.
        ConfigError: ``val_share`` or ``question`` is out of range.
    """
    folder = Path(folder)
    path = folder / table
    if not 0 <= val_share < 1:
        raise ConfigError(f'val_share must be at least 0 and below 1, got {val_share}')
    if '{x}' not in question:
        raise ConfigError(
            f'question must contain {{x}}, which the phrase replaces, got {question!r}'
        )
    if not overwrite and (found := [s for s in _SPLITS if (folder / f'{s}.json').exists()]):
        raise FileExistsError(
            f'{folder}: {", ".join(f"{s}.json" for s in found)} is there already;'
            ' replace it with --overwrite'
        )
    result, checked, check = Conversion(), [], _Checks(folder, exif)
    for line, cells in progress(list(_read_rows(path))):
        try:
            checked.append(check(line, cells))
        except _BadRowError as error:
            result.skipped.setdefault(error.kind, []).append(f'line {line}: {error}')
    if not checked:
        first = next((f'; {messages[0]}' for messages in result.skipped.values()), '')
        raise AnnotationError(
            str(path),
            'rows',
            f'none of {sum(map(len, result.skipped.values()))} can be used{first}',
        )
    splits = _choose_splits(checked, val_share)
    for split in _SPLITS:
        entries = _entries([row for row in checked if splits[row.image] == split], check, question)
        (folder / f'{split}.json').unlink(missing_ok=True)
        if entries:
            dump_json(entries, folder / f'{split}.json')
            result.images[split] = len(entries)
            result.turns[split] = sum(len(entry['turns']) for entry in entries)
    return result


def _read_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Line number and cells of each row."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist; write the table there: a first line '
            '"image,mask,phrase", then a line per mask'
        )
    # Spreadsheet programs begin a file with a byte-order mark.
    with open(path, encoding='utf-8-sig', newline='') as file:
        reader = csv.DictReader(file)
        try:
            names = [(name or '').strip().lower() for name in reader.fieldnames or ()]
            missing = [name for name in _NEEDED if name not in names]
            if missing:
                raise AnnotationError(
                    str(path),
                    'first line',
                    f'lacks the columns {missing}; has {names}. Columns are separated by commas',
                )
            reader.fieldnames = names
            for cells in reader:
                yield reader.line_num, cells
        except (UnicodeDecodeError, csv.Error) as error:
            raise AnnotationError(
                str(path), 'table', f'cannot be read ({error}); save it as CSV in UTF-8'
            ) from error


class _Checks:
    """Says what is wrong with a row; remembers what earlier rows said.

    Args:
        folder: Folder of the data set.
        exif: See :func:`masks_to_pixel_chat`.
    """

    def __init__(self, folder: Path, exif: str | None) -> None:
        self._images, self._masks = folder / 'images', folder / 'masks'
        self._exif = exif
        self._splits: dict[str, tuple[str, int]] = {}
        self._seen: dict[tuple[str, ...], int] = {}
        self._faulty: dict[str, str] = {}
        #: (height, width) of every image that can be read, in the pixels of its masks.
        self.sizes: dict[str, tuple[int, int]] = {}
        #: What these are, of images with an EXIF rotation; None while that is not known.
        self.exif: dict[str, str | None] = {}

    def __call__(self, line: int, cells: dict) -> _Row:
        """Give the checked row; raises :class:`_BadRowError`."""
        if None in cells:
            raise _BadRowError(
                'too many cells',
                'has more cells than the first line; put quotes around a phrase with a comma',
            )
        row = _Row(line, *((cells.get(name) or '').strip() for name in (*_NEEDED, 'split')))
        self._check_text(row)
        self._check_image(row.image)
        self._check_mask(row)
        self._check_split(row)
        twin = self._seen.setdefault((row.image, row.mask, row.phrase), line)
        if twin != line:
            raise _BadRowError('repeated row', f'says the same as line {twin}')
        return row

    @staticmethod
    def _check_text(row: _Row) -> None:
        blank = [name for name in _NEEDED if not getattr(row, name)]
        if blank:
            raise _BadRowError('blank cell', f'{" and ".join(blank)} is blank')
        found = _TOKEN.search(row.phrase)
        if found:
            raise _BadRowError(
                'reserved word',
                f'the phrase has {found.group()}, which means '
                'something to the model; word it without',
            )

    def _check_image(self, name: str) -> None:
        from pixelsail_mm.datasets.transforms import LoadImage

        if name not in self.sizes and name not in self._faulty:
            _require_file(self._images / name)
            try:
                loaded = LoadImage(exif=self._exif or ROTATE)(
                    dict(img_path=str(self._images / name), notes=[])
                )
                self.sizes[name] = loaded['ori_shape']
                with Image.open(self._images / name) as image:
                    if is_rotated(image):
                        self.exif[name] = self._exif
            except BadSampleError as error:
                self._faulty[name] = f'{error.file}: {error.reason}'
        if name in self._faulty:
            raise _BadRowError('unusable image', self._faulty[name])

    def _check_mask(self, row: _Row) -> None:
        path = self._masks / row.mask
        _require_file(path)
        if path.suffix.lower() in _BLURRED:
            raise _BadRowError(
                'mask is a JPEG', f'{path}: JPEG blurs the edge of a mask; save it as PNG'
            )
        if self.exif.get(row.image, self) is None:
            self._choose_exif(row.image, path)
        try:
            mask = decode_mask(dict(png=str(path)), *self.sizes[row.image], str(path), 'mask')
        except BadSampleError as error:
            raise _BadRowError('unusable mask', f'{error.file}: {error.reason}') from error
        if not mask.any():
            raise _BadRowError('empty mask', f'{path}: no pixel differs from 0')

    def _choose_exif(self, name: str, mask: Path) -> None:
        """Find out what a mask of a picture with an EXIF rotation was drawn on."""
        try:
            with Image.open(self._images / name) as image, Image.open(mask) as drawn:
                sizes = {way: shown_size(image, way) for way in (IGNORE, ROTATE)}
                found = [way for way, size in sizes.items() if size == (drawn.height, drawn.width)]
        except DECODING_ERRORS:
            return  # said by who reads it
        if len(found) == 2:
            raise _BadRowError(
                'picture with an EXIF rotation',
                f'{self._images / name}: its size does not tell what the mask was drawn on; '
                'convert with --exif rotate (masks of what viewers and annotation tools show) or '
                '--exif ignore (of the stored pixels)',
            )
        if found:
            self.exif[name], self.sizes[name] = found[0], sizes[found[0]]

    def _check_split(self, row: _Row) -> None:
        if not row.split:
            return
        if row.split not in _SPLITS:
            raise _BadRowError('split', f'{row.split!r} is none of {", ".join(_SPLITS)}')
        split, line = self._splits.setdefault(row.image, (row.split, row.line))
        if split != row.split:
            raise _BadRowError(
                'split',
                f'{row.image} is {row.split} here and {split} in line '
                f'{line}; an image belongs to one split',
            )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise _BadRowError('missing file', f'{path} does not exist')


def _choose_splits(rows: Iterable[_Row], val_share: float) -> dict[str, str]:
    """Split of every image."""
    splits: dict[str, str] = {}
    for row in rows:
        splits[row.image] = splits.get(row.image) or row.split
    free = sorted((name for name, split in splits.items() if not split), key=_share)
    drawn = sum(_share(name) < val_share for name in free)
    if val_share and len(free) > 1 and 'val' not in splits.values():
        drawn = min(max(drawn, 1), len(free) - 1)
    for i, name in enumerate(free):
        splits[name] = 'val' if i < drawn else 'train'
    return splits


def _share(name: str) -> float:
    """Number from 0 to 1 that depends on nothing but a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], 'big') / (1 << 48)


def _entries(rows: Iterable[_Row], check: _Checks, question: str) -> list[dict]:
    images: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        images[row.image][row.phrase].append(row.mask)
    return [
        _entry(name, phrases, *check.sizes[name], check.exif.get(name), question)
        for name, phrases in images.items()
    ]


def _entry(
    name: str,
    phrases: dict[str, list[str]],
    height: int,
    width: int,
    exif: str | None,
    question: str,
) -> dict[str, Any]:
    masks = [[dict(png=file) for file in files] for files in phrases.values()]
    return dict(
        id=name,
        image=name,
        height=height,
        width=width,
        **({} if exif is None else dict(exif=exif)),
        turns=[
            dict(
                question=question.replace('{x}', phrase), answer=f'{SEG_TOKEN}.', expression=phrase
            )
            for phrase in phrases
        ],
        masks=[parts[0] if len(parts) == 1 else dict(union=parts) for parts in masks],
    )
