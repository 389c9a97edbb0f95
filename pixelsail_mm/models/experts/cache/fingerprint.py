"""Fingerprints of experts: which weights and which settings made a feature map."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

from torch import Tensor

from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS

#: What Hugging Face folders call their weights, in the order in which transformers prefers them.
# Entries of a config.json that say nothing about what the model computes.
_REMARKS = {'_name_or_path', 'architectures', 'dtype', 'torch_dtype', 'transformers_version'}
_WEIGHTS = ('model.safetensors', 'model-*-of-*.safetensors', 'pytorch_model.bin',
            'pytorch_model-*-of-*.bin')


def expert_fingerprint(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprint of an expert from its config, without building it.

    Args:
        cfg: Config with ``type`` and the arguments of that type.

    Returns:
        See :meth:`~.base.VisionExpert.fingerprint_of`; None for what cannot be told here.

    Raises:
        ConfigError: ``cfg`` names no expert, or has arguments that it does not take.
    """
    settings = dict(cfg)
    name = settings.pop('type', None)
    kind = MODELS.get(name) if isinstance(name, str) else name
    if not hasattr(kind, 'fingerprint_of'):
        raise ConfigError(f'distill.expert.of: type={name!r} is not a registered vision expert; '
                          "give the config of the expert that made the features, e.g. "
                          "dict(type='SAM2Expert', model=..., size=1024)")
    try:
        return plain(kind.fingerprint_of(**settings))
    except TypeError as error:  # unknown or missing arguments
        raise ConfigError(f'distill.expert.of, {name}: {error}') from error


def plain(value: Any) -> Any:
    """Give ``value`` as it is after a round trip through JSON (tuples become lists)."""
    return json.loads(json.dumps(value))


def differences(found: Any, expected: Any, name: str = '') -> Iterator[str]:
    """Compare what a cache says with what is expected; None is not compared.

    Args:
        found: What the cache says.
        expected: Expected value; of a dict only the entries it has are compared.
        name: Where the values stand, for the texts.

    Yields:
        One text per difference.
    """
    if expected is None:
        return
    if isinstance(expected, Mapping) and (isinstance(found, Mapping) or not name):
        for key, value in expected.items():
            inner = f'{name}.{key}' if name else str(key)
            yield from differences((found or {}).get(key), value, inner)
    elif found != expected:
        yield f'{name} is {found!r} instead of {expected!r}'


def untold(found: Any, expected: Any, name: str = '') -> Iterator[str]:
    """Names of what :func:`differences` leaves out although the cache says something there."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key, value in expected.items():
            yield from untold(found.get(key), value, f'{name}.{key}' if name else str(key))
    elif expected is None and found is not None:
        yield name


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash the names and values of tensors, e.g. of a model with random weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().float().cpu().contiguous()
        digest.update(f'{name}{tuple(value.shape)}'.encode())
        digest.update(value.numpy())
    return digest.hexdigest()


def weights_sha256(model: str | os.PathLike) -> str | None:
    """Hash weights where they are on this machine; quick for files that were hashed before.

    Args:
        model: A file, a Hugging Face folder, or the hub name of one that was downloaded.

    Returns:
        For a single file its SHA-256, as ``sha256sum`` prints it; for a folder with several weight
        files the SHA-256 of that program's output for them, sorted by name. None if there are no
        weights on this machine.
    """
    files = _weight_files(Path(model), str(model))
    if not files:
        return None
    sums = file_sha256s(files)
    if len(sums) == 1:
        return sums[0]
    lines = ''.join(f'{value}  {file.name}\n' for value, file in zip(sums, files))
    return hashlib.sha256(lines.encode()).hexdigest()


def settings_sha256(model: str | os.PathLike | Mapping[str, Any]) -> str | None:
    """Hash the settings of an architecture: with others the same weights may give other features.

    Args:
        model: A Hugging Face folder, the hub name of one that was downloaded, or settings.

    Returns:
        SHA-256 of the settings as JSON with sorted keys, without remarks such as the version of
        transformers. None if there are none on this machine.
    """
    settings = model
    if not isinstance(model, Mapping):
        folder = _folder(Path(model), str(model))
        try:
            settings = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        except (TypeError, OSError, ValueError):  # no folder; no such file; not JSON
            return None
    return hashlib.sha256(json.dumps(_without_remarks(settings), sort_keys=True)
                          .encode()).hexdigest()


def _without_remarks(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {key: _without_remarks(value) for key, value in settings.items()
            if key not in _REMARKS}


def _folder(path: Path, name: str) -> Path | None:
    return path if path.is_dir() else _downloaded(name)


def _weight_files(path: Path, name: str) -> list[Path]:
    if path.is_file():
        return [path]
    folder = _folder(path, name)
    if folder is None:
        return []
    found = (sorted(folder.glob(pattern)) for pattern in _WEIGHTS)
    return next((files for files in found if files), [])


def _downloaded(name: str) -> Path | None:
    """Folder of a hub name in the local cache of huggingface_hub; never asks the network."""
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not there; not of the form of a hub name
        return None


def file_sha256s(files: Iterable[Path]) -> list[str]:
    """SHA-256 of files, remembered by path, size and times of change.

    Weights of several GB take seconds to hash, once per machine instead of at each start of each
    process. What is remembered lies in ``$XDG_CACHE_HOME/pixelsail_mm`` (``~/.cache``); where that
    cannot be written, files are hashed each time.
    """
    memory = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    memory = memory / 'pixelsail_mm' / 'weights_sha256.json'
    known = _remembered(memory)
    sums, new = [], False
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        # Copies and archives may set the time of the content, but none sets that of the inode.
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = known.get(path)
        if not isinstance(entry, list) or entry[:-1] != state:
            known[path] = entry = [*state, sha256_of(file)]
            new = True
        sums.append(entry[-1])
    if new:
        _remember(memory, known)
    return sums


def _remembered(memory: Path) -> dict[str, list]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, list]) -> None:
    # Processes that start together may lose each other's entries, which only costs time.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile('w', dir=memory.parent, delete=False) as file:
            json.dump({path: entry for path, entry in known.items() if os.path.exists(path)}, file)
        os.replace(file.name, memory)
