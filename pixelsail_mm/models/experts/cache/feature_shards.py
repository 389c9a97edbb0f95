"""Feature maps of many images in safetensors files.

A folder holds ``index.json`` (whose features these are) and shards
``features-000000.safetensors``. A shard holds the maps of some images, each under the image's name;
its header keeps a note for each: CRC-32 of name and map, and the image's :class:`ImageState`.

A shard gets its name when all of it is written, and is never changed or locked. So a killed process
leaves whole shards and at most a file ``*.unfinished``, which nobody reads and you may delete; and
any number of processes and machines may write at once. Of an image in several shards the map in the
one of the highest number counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.cache.fingerprint import mismatches, plain

INDEX = 'index.json'
#: What ``format`` in ``index.json`` begins with, of any version.
KIND = 'pixelsail_mm feature shards'
FORMAT = f'{KIND}, version 2'
_REMEDY = 'run tools/dataset_converters/cache_expert_features.py again'


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
    content: str

    @classmethod
    def read(cls, path: str | os.PathLike) -> ImageState:
        """State of a file; reads all of it, which warms the page cache for the decoder."""
        state = os.stat(path)
        return cls(state.st_size, state.st_mtime_ns, _hash(path))

    def matches(self, path: str | os.PathLike) -> bool:
        """Whether the file has this content."""
        state = os.stat(path)
        return state.st_size == self.size and (
            state.st_mtime_ns == self.mtime or _hash(path) == self.content
        )


def _hash(path: str | os.PathLike) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


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
        if _shards(root):
            raise ConfigError(
                f'{root / INDEX} is missing, so nobody can tell whose features the '
                f'shards beside it are; delete {root} and {_REMEDY}'
            ) from None
        return None
    except ValueError as error:
        raise ConfigError(
            f'{root / INDEX}: not valid JSON ({error}); write the features again '
            'into an empty folder'
        ) from error
    return content


def check_kind(root: Path, expected: Mapping[str, Any]) -> bool:
    """Check that features may be added to a cache; False if there is no cache yet.

    Args:
        root: Folder of the cache.
        expected: Entries that ``index.json`` must have, see :func:`~.fingerprint.mismatches`.

    Raises:
        ConfigError: It holds features of another kind, or in the format of another version.
    """
    header = read_index(root)
    if header is None:
        return False
    if wrong := mismatches(header, {'format': FORMAT, **expected}):
        raise ConfigError(
            f'{root / INDEX}: this cache holds features of another kind, to which '
            f'none can be added: {"; ".join(wrong)}; give another --out, or delete '
            'this folder'
        )
    return True


def _shards(root: Path) -> list[Path]:
    """Shards in the order of their numbers."""
    return sorted(
        (path for path in root.glob('features-*.safetensors') if _number(path).isdigit()),
        key=lambda path: int(_number(path)),
    )


def _number(shard: Path) -> str:
    return shard.stem.partition('-')[2]


def _publish(root: Path, names: Iterable[str], write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file and give it the first free name; nobody sees it half written."""
    file = root / f'{uuid.uuid4().hex}.unfinished'
    try:
        write(file)
        for name in names:
            with contextlib.suppress(FileExistsError):
                os.link(file, root / name)  # unlike a rename, refuses to replace
                break
    finally:
        file.unlink(missing_ok=True)


def create_cache(root: str | os.PathLike, fingerprint: Mapping[str, Any], dtype: str) -> None:
    """Make the folder and ``index.json`` of a cache, unless it is there already.

    Args:
        root: Folder of the cache.
        fingerprint: See :meth:`~.base.VisionExpert.fingerprint`.
        dtype: ``'float16'``, ``'bfloat16'`` or ``'float32'``.

    Raises:
        ConfigError: ``root`` holds features of another kind.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    header = plain(dict(format=FORMAT, dtype=dtype, **fingerprint))
    if not check_kind(root, header):
        _publish(root, [INDEX], lambda file: file.write_text(json.dumps(header, indent=2)))
        check_kind(root, header)  # another process may have been faster


def narrow(name: str, feature: Tensor, dtype: str) -> Tensor:
    """Copy a map to the CPU, in the dtype of the cache.

    Args:
        name: Name of the image, for messages.
        feature: ``(C,h,w)``, floating point.
        dtype: See :func:`create_cache`.

    Raises:
        ConfigError: It is no map, holds NaN or infinity, or numbers beyond the dtype.
    """
    if not (
        torch.is_tensor(feature)
        and feature.ndim == 3
        and feature.numel()
        and feature.is_floating_point()
    ):
        kind = getattr(feature, 'dtype', type(feature).__name__)
        shape = (*getattr(feature, 'shape', ()),)
        raise ConfigError(
            f'{name}: the expert gives {kind} {shape}; a feature map is a '
            'floating point tensor (C,h,w) that is not empty'
        )
    # Converted before it leaves the GPU: half the transfer. A copy, as an expert may use one
    # buffer for all maps.
    values = feature.detach().to(getattr(torch, dtype), copy=True).cpu().contiguous()
    if not values.isfinite().all():
        if not feature.isfinite().all():
            raise ConfigError(
                f'{name}: the features of this image hold NaN or infinity; check '
                "the expert's weights, or run it with dtype='float32'"
            )
        raise ConfigError(
            f'{name}: features up to {feature.abs().max().item():.6g} exceed {dtype} '
            f'({torch.finfo(values.dtype).max:.6g} at most); use --dtype bfloat16 (same size, '
            '3 digits less) or float32, with another --out'
        )
    return values


def write_shard(
    root: str | os.PathLike, maps: Mapping[str, Tensor], images: Mapping[str, ImageState]
) -> int:
    """Add feature maps to a cache, as one shard.

    Args:
        root: Folder that :func:`create_cache` made.
        maps: Maps as :func:`narrow` gives them, by name (see :func:`~.image_names.image_name`).
        images: State of each image file when it was read.

    Returns:
        Bytes written.
    """
    if not maps:
        return 0
    root, size = Path(root), 0
    notes = {
        name: json.dumps([_crc(name, values), *astuple(images[name])])
        for name, values in maps.items()
    }

    def write(file: Path) -> None:
        nonlocal size
        save_file(dict(maps), file, notes)
        shutil.copymode(root / INDEX, file)  # the library's files are their owner's alone
        size = file.stat().st_size

    first = max((int(_number(shard)) for shard in _shards(root)), default=-1) + 1
    _publish(root, (f'features-{number:06d}.safetensors' for number in count(first)), write)
    return size


def _crc(name: str, values: Tensor) -> int:
    return zlib.crc32(values.view(torch.uint8).numpy(), zlib.crc32(name.encode()))


class ShardStore:
    """Read a cache: headers of shards when it is opened, maps when they are asked for.

    A shard is open only while it is read: thousands of them would use up the files that a process
    may have open.

    Args:
        root: Folder of the cache.

    Raises:
        ConfigError: ``index.json`` or shards are damaged, or of another version.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        header = read_index(self.root) or {}
        if header.get('format') != FORMAT:
            raise ConfigError(
                f'{self.root / INDEX}: format {header.get("format")!r} is not one '
                f'that this version reads; delete the folder and {_REMEDY}'
            )
        self._shard_of: dict[str, Path] = {}
        damaged = []
        for path in _shards(self.root):
            try:
                with safe_open(path, 'pt') as shard:
                    self._shard_of.update(dict.fromkeys(shard.keys(), path))
            except SafetensorError:
                damaged.append(str(path))
        if damaged:
            raise ConfigError(
                f'damaged or truncated: {", ".join(damaged)}; delete these files and '
                f'{_REMEDY}, which makes their maps anew'
            )

    def __len__(self) -> int:
        return len(self._shard_of)

    def names(self) -> Iterator[str]:
        """Names of all images."""
        return iter(self._shard_of)

    def place(self, name: str) -> str:
        """Where the features of a name are looked for, for messages."""
        example = next(self.names(), None)
        return f'{self.root}/{name}' + (f' (there is e.g. {example})' if example else ' (empty)')

    def is_current(self, name: str, image: str | os.PathLike) -> bool | None:
        """Whether the features of a name belong to the image as it is now; None if there are none.

        Raises:
            ConfigError: The shard is damaged.
            OSError: The image cannot be read.
        """
        if name not in self._shard_of:
            return None
        with self._opened(name) as shard:
            _, *state = json.loads(shard.metadata()[name])
        return ImageState(*state).matches(image)

    def read(self, name: str) -> Tensor:
        """Map ``(C,h,w)`` float32 of an image that :meth:`is_current` knows.

        Raises:
            ConfigError: What is there is not what was written.
        """
        with self._opened(name) as shard:
            values = shard.get_tensor(name)
            if _crc(name, values) != json.loads(shard.metadata()[name])[0]:
                raise ValueError('wrong checksum')
        return values.to(torch.float32, copy=True)  # a view would keep the file open

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        path = self._shard_of[name]
        try:
            with safe_open(path, 'pt') as shard:
                yield shard
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'{path}: the features of {name} are damaged ({error}); delete this '
                f'file and {_REMEDY}'
            ) from error
