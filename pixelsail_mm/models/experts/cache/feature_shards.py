"""Feature maps of many images in a few memory-mapped files.

A folder holds ``index.json`` (whose features these are, see :class:`ShardHeader`) and pairs of
files ``features-00000.bin`` / ``.idx``. Each pair belongs to one process, which only ever appends:

* ``.bin``: for each image its map (little-endian, C order) and behind it the image's name (UTF-8);
* ``.idx``: for each image one record of 64 bytes (:data:`RECORD`), written when all of the map is
  in the ``.bin``. A killed process so leaves whole records and at most a part of one.

A later record of a name replaces an earlier one. No file is ever changed or locked, so any number
of processes and machines may write at once. A million images have 64 MB of records.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.cache.fingerprint import plain
from pixelsail_mm.structures import PixelDataSample

INDEX = 'index.json'
FORMAT = 'pixelsail_mm feature shards, version 1'
RECORD = np.dtype([
    ('name', '<u8'),  # hash of the name; the name itself stands behind the map
    ('offset', '<u8'), ('shape', '<u4', 3), ('name_bytes', '<u4'),
    ('image_bytes', '<u8'), ('image_mtime', '<i8'), ('image_hash', '<u8'),
    ('crc', '<u4'),  # CRC-32 of map and name
    ('check', '<u4')])  # of the record itself
# Stored type of each dtype; numpy has no bfloat16.
_STORED = dict(float16='<f2', bfloat16='<u2', float32='<f4')
DTYPES = tuple(_STORED)
_SHARD_BYTES = 1 << 30
_NAME = re.compile(r'features-(\d{5,})\.idx')
_REMEDY = 'run tools/dataset_converters/cache_expert_features.py again'
_FACTORS = (np.arange(1, 31, 2, dtype=np.uint32) * np.uint32(2654435761))
_SEED = 0x5EA1F00D


@dataclass(frozen=True)
class ImageState:
    """What tells whether an image file is still the one that the features were made of.

    As in git's index, a file of the same size and time of change is taken to be unchanged, at the
    price of one ``stat``; when only the time differs (copied data, a checkout), the hash of its
    content decides. Copies that keep times (``rsync -a``, ``tar``) are therefore free.

    Attributes:
        size: Bytes of the file.
        mtime: Its time of change in ns.
        content: 64-bit BLAKE2b of its content.
    """

    size: int
    mtime: int
    content: int

    @classmethod
    def read(cls, path: str | os.PathLike) -> ImageState:
        """State of a file; reads all of it, which warms the page cache for the decoder."""
        state = os.stat(path)
        return cls(state.st_size, state.st_mtime_ns, _hash(Path(path).read_bytes()))

    def matches(self, path: str | os.PathLike) -> bool:
        """Whether the file has this content."""
        state = os.stat(path)
        if state.st_size != self.size:
            return False
        return state.st_mtime_ns == self.mtime or _hash(Path(path).read_bytes()) == self.content


@dataclass(frozen=True)
class Entry:
    """Where the features of an image are; made by :meth:`ShardStore.find`."""

    name: str
    shard: str
    offset: int
    shape: tuple[int, ...]
    crc: int
    image: ImageState


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little')


def _checks(records: np.ndarray) -> np.ndarray:
    """Checksum of each record; depends on the place of each word and is not 0 for zeros."""
    words = records.view('<u4').reshape(-1, RECORD.itemsize // 4)[:, :-1]
    return (words * _FACTORS).sum(1, dtype=np.uint32) + np.uint32(_SEED)


class ShardHeader:
    """``index.json`` of a folder of shards.

    Args:
        fingerprint: See :meth:`~.base.VisionExpert.fingerprint`.
        dtype: ``'float16'``, ``'bfloat16'`` or ``'float32'``.
    """

    def __init__(self, fingerprint: Mapping[str, Any], dtype: str) -> None:
        self.content = dict(format=FORMAT, dtype=dtype, **plain(fingerprint))

    def claim(self, root: Path) -> None:
        """Make ``root`` a cache of this kind, or check that it is one.

        Raises:
            ConfigError: It holds something else.
        """
        root.mkdir(parents=True, exist_ok=True)
        if read_index(root) is None:
            # Not tempfile's: its files can be read by their owner only, and so could the index.
            file = root / f'{INDEX}.{uuid.uuid4().hex}'
            try:
                file.write_text(json.dumps(self.content, indent=2))
                os.link(file, root / INDEX)  # unlike a rename, refuses to replace
            except FileExistsError:  # another process was faster
                pass
            finally:
                file.unlink(missing_ok=True)
        found = read_index(root)
        wrong = [f'{key} is {found.get(key)!r} instead of {self.content.get(key)!r}'
                 for key in {**self.content, **found} if found.get(key) != self.content.get(key)]
        if wrong:
            raise ConfigError(f'{root / INDEX}: this cache holds features of another kind, to '
                              f'which none can be added: {"; ".join(wrong)}; write to another '
                              'folder, or delete this one')


def read_index(root: Path) -> dict[str, Any] | None:
    """Content of ``index.json``; None if there is none.

    Raises:
        ConfigError: It is damaged, or missing beside shards.
    """
    try:
        content = json.loads((root / INDEX).read_text(encoding='utf-8'))
        if not isinstance(content, dict):
            raise ValueError('not a dict')
    except FileNotFoundError:
        if is_sharded(root):
            raise ConfigError(f'{root / INDEX} is missing, so nobody can tell whose features the '
                              f'shards beside it are; delete {root} and {_REMEDY}') from None
        return None
    except ValueError as error:
        raise ConfigError(f'{root / INDEX}: not valid JSON ({error}); write the features again '
                          'into an empty folder') from error
    return content


def is_sharded(root: Path, header: Mapping[str, Any] | None = None) -> bool:
    """Whether a folder holds shards, or is to, as its ``index.json`` (``header``) says."""
    return (header or {}).get('format') == FORMAT or any(root.glob('features-[0-9]*.idx'))


class ShardWriter:
    """Append feature maps to a cache; for one process.

    Args:
        root: Folder of the cache; made if needed.
        header: Whose features these are.
        shard_bytes: Size from which on a shard gets no more maps.

    Raises:
        ConfigError: ``root`` holds features of another kind.
    """

    def __init__(self, root: str | os.PathLike, header: ShardHeader,
                 shard_bytes: int = _SHARD_BYTES) -> None:
        self.root = Path(root)
        header.claim(self.root)
        self.dtype = header.content['dtype']
        self.shard_bytes = shard_bytes
        self.written_bytes = 0
        self._files: tuple[BinaryIO, BinaryIO] | None = None

    def write(self, name: str, feature: Tensor, image: ImageState) -> None:
        """Append the map of an image.

        Args:
            name: See :func:`~.image_names.image_name`.
            feature: ``(C,h,w)``, floating point.
            image: State of the image file when it was read.

        Raises:
            ConfigError: It is no map, holds NaN or infinity, or numbers beyond the dtype.
        """
        data = self._stored(name, feature).numpy()
        index, shard = self._open_shard()
        label = name.encode()
        record = np.zeros(1, RECORD)
        record['name'] = _hash(label)
        record['offset'], record['shape'] = shard.tell(), data.shape[:3]
        record['name_bytes'], record['crc'] = len(label), zlib.crc32(label, zlib.crc32(data))
        record['image_bytes'], record['image_mtime'] = image.size, image.mtime
        record['image_hash'] = image.content
        record['check'] = _checks(record)
        shard.write(data)
        shard.write(label)
        shard.flush()
        index.write(record.tobytes())
        index.flush()
        self.written_bytes += data.nbytes + len(label) + RECORD.itemsize

    def _stored(self, name: str, feature: Tensor) -> Tensor:
        """Convert to the dtype of the cache: ``(C,h,w)``, for bfloat16 its bits."""
        if not (torch.is_tensor(feature) and feature.ndim == 3 and feature.numel()
                and feature.is_floating_point()):
            kind = getattr(feature, 'dtype', type(feature).__name__)
            shape = (*getattr(feature, 'shape', ()),)
            raise ConfigError(f'{name}: the expert gives {kind} {shape}; a feature map is a '
                              'floating point tensor (C,h,w) that is not empty')
        # Converted before it leaves the GPU: half the transfer.
        narrow = feature.detach().to(getattr(torch, self.dtype)).cpu().contiguous()
        if not narrow.isfinite().all():
            if not feature.isfinite().all():
                raise ConfigError(f'{name}: the features of this image hold NaN or infinity; check '
                                  "the expert's weights, or run it with dtype='float32'")
            raise ConfigError(
                f'{name}: features up to {feature.abs().max().item():.6g} exceed {self.dtype} '
                f'({torch.finfo(narrow.dtype).max:.6g} at most); use --dtype bfloat16 (same size, '
                '3 digits less) or float32, with another --out')
        return narrow.view(torch.uint16) if self.dtype == 'bfloat16' else narrow

    def _open_shard(self) -> tuple[BinaryIO, BinaryIO]:
        if self._files is not None and self._files[1].tell() >= self.shard_bytes:
            self.close()
        if self._files is None:
            number = max((_number(path) for path in _index_files(self.root)), default=-1) + 1
            while True:
                stem = self.root / f'features-{number:05d}'
                try:
                    self._files = open(f'{stem}.idx', 'xb'), open(f'{stem}.bin', 'xb')
                    break
                except FileExistsError:  # another process took this number
                    number += 1
        return self._files

    def close(self) -> None:
        """Finish the shard; the next map begins another one."""
        for file in self._files or ():
            file.close()
        self._files = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _number(path: Path) -> int:
    return int(_NAME.fullmatch(path.name).group(1))


def _index_files(root: Path) -> list[Path]:
    """Records of all shards, oldest first."""
    return sorted((path for path in root.iterdir() if _NAME.fullmatch(path.name)), key=_number)


class ShardStore:
    """Read a cache: 64 bytes per image are read when it is opened, maps when they are asked for.

    Maps come from memory-mapped files, whose pages processes share; mapped only while they are
    read, since a mapping keeps its file open (often 1024 per process) and reading one whose file
    was cut meanwhile kills the process (SIGBUS).

    Args:
        root: Folder of the cache.

    Raises:
        ConfigError: The index is damaged, or there is none.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.header = read_index(self.root) or {}
        self._dtype = self.header.get('dtype')
        if self.header.get('format') != FORMAT or self._dtype not in _STORED:
            raise ConfigError(f'{self.root / INDEX}: format {self.header.get("format")!r} with '
                              f'dtype {self._dtype!r} is not one that this version reads; delete '
                              f'the folder and {_REMEDY}')
        self._load_records()

    def _load_records(self) -> None:
        tables, self._shards, broken = [np.empty(0, RECORD)], [], {}
        for path in _index_files(self.root):
            table = _read_records(path)
            shard = path.with_suffix('.bin')
            ends = (table['offset'] + table['name_bytes']
                    + table['shape'].prod(1, dtype=np.uint64) * np.uint64(self._itemsize))
            whole = ends <= (shard.stat().st_size if shard.exists() else 0)
            if not whole.all():
                broken[shard] = table['name'][~whole]
            tables.append(table[whole])
            self._shards.append(str(shard))
        shards = np.repeat(np.arange(-1, len(self._shards)), [len(table) for table in tables])
        records = np.concatenate(tables)
        order = np.argsort(records['name'], kind='stable')  # the newest of a name stays last
        self._records, self._shard_of = records[order], shards[order]
        self._hashes = np.ascontiguousarray(self._records['name'])
        #: Truncated shards whose images are nowhere else, with the number of these.
        self.truncated = {shard: lost for shard, names in broken.items()
                          if (lost := int((~np.isin(names, self._hashes)).sum()))}

    @property
    def _itemsize(self) -> int:
        return np.dtype(_STORED[self._dtype]).itemsize

    def require_whole(self) -> ShardStore:
        """Give this store; raise ConfigError if maps were lost with the end of a shard."""
        for shard, lost in self.truncated.items():
            raise ConfigError(f'{shard}: truncated, {lost} of its maps are lost; {_REMEDY}, which '
                              'makes them anew')
        return self

    def name_of(self, image: str) -> str:
        """Name under which an image's features are kept: its own."""
        return image

    def place(self, name: str) -> str:
        """Where the features of a name are looked for, for messages."""
        example = next(self.names(), None)
        return f'{self.root}/{name}' + (f' (there is e.g. {example})' if example else ' (empty)')

    def is_current(self, entry: Entry, sample: PixelDataSample) -> bool:
        """Whether the features belong to the image as it is now."""
        return entry.image.matches(sample.img_path)

    def __len__(self) -> int:
        return len(np.unique(self._hashes))

    def find(self, name: str) -> Entry | None:
        """Newest record of an image; None if there is none."""
        value = np.uint64(_hash(name.encode()))
        place = int(np.searchsorted(self._hashes, value, side='right')) - 1
        if place < 0 or self._hashes[place] != value:
            return None
        record = self._records[place]
        return Entry(name, self._shards[self._shard_of[place]], int(record['offset']),
                     tuple(record['shape'].tolist()), int(record['crc']),
                     ImageState(int(record['image_bytes']), int(record['image_mtime']),
                                int(record['image_hash'])))

    def read(self, entry: Entry) -> Tensor:
        """Map ``(C,h,w)`` float32 of a record.

        Raises:
            ConfigError: What is there is not what was written.
        """
        size, label = int(np.prod(entry.shape)) * self._itemsize, entry.name.encode()
        try:
            data = np.memmap(entry.shard, np.uint8, 'r', entry.offset, size + len(label))
        except ValueError:  # the file ends before
            data = np.empty(0, np.uint8)
        if zlib.crc32(data) != entry.crc or data[size:].tobytes() != label:
            raise ConfigError(f'{entry.shard}: the features of {entry.name} are damaged; delete '
                              f'this file and its .idx, and {_REMEDY}')
        values = data[:size].view(_STORED[self._dtype]).reshape(entry.shape)
        if self._dtype == 'bfloat16':
            return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32))
        return torch.from_numpy(values.astype(np.float32))

    def names(self) -> Iterator[str]:
        """Names of all images, sorted by their hash."""
        for place in np.flatnonzero(np.diff(self._hashes, append=np.uint64(0)) != 0):
            record = self._records[place]
            start = (int(record['offset'])
                     + int(record['shape'].prod(dtype=np.uint64)) * self._itemsize)
            with open(self._shards[self._shard_of[place]], 'rb') as shard:
                shard.seek(start)
                yield shard.read(int(record['name_bytes'])).decode()


def _read_records(path: Path) -> np.ndarray:
    """Whole records of a file; what a kill cut off at its end is left out."""
    content = path.read_bytes()
    table = np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)
    sound = table['check'] == _checks(table)
    length = len(sound) if sound.all() else int(np.argmin(sound))
    if sound[length:].any():
        raise ConfigError(f'{path}: damaged (record {length}); delete this file and its .bin, and '
                          f'{_REMEDY}')
    return table[:length]
