"""Fingerprints of experts: which weights and which settings made a feature map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.setting_differences import differences

# Entries of a config.json that say nothing about what the model computes.
_REMARKS = {'_name_or_path', 'architectures', 'dtype', 'torch_dtype', 'transformers_version'}
# What Hugging Face folders call their weights, in the order in which transformers prefers them.
_WEIGHTS = (
    'model.safetensors',
    'model-*-of-*.safetensors',
    'pytorch_model.bin',
    'pytorch_model-*-of-*.bin',
)


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
        raise ConfigError(
            f'distill.expert.of: type={name!r} is not a registered vision expert; '
            'give the config of the expert that made the features, e.g. '
            "dict(type='SAM2Expert', model=..., size=1024)"
        )
    try:
        return plain(kind.fingerprint_of(**settings))
    except TypeError as error:  # unknown or missing arguments
        raise ConfigError(f'distill.expert.of, {name}: {error}') from error


def plain(value: Any) -> Any:
    """Give ``value`` as it is after a round trip through JSON (tuples become lists)."""
    return json.loads(json.dumps(value))


def mismatches(found: Any, expected: Any) -> list[str]:
    """Compare what a cache says with what is expected.

    Args:
        found: What the cache says.
        expected: Expected entries; entries that only the cache has, and None, are not compared.

    Returns:
        One text per difference.
    """
    return [
        f'{name} is {said!r} instead of {wanted!r}'
        for name, said, wanted in differences(found or {}, expected)
        if wanted is not None
    ]


def untold(found: Any, expected: Any, name: str = '') -> Iterator[str]:
    """Names of what is expected to be None although the cache says something there."""
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
    """Hash weights where they are on this machine.

    Args:
        model: A file, a Hugging Face folder, or the hub name of one that was downloaded.

    Returns:
        For a single file its SHA-256, as ``sha256sum`` prints it; for a folder with several weight
        files the SHA-256 of that program's output for them, sorted by name. None if there are no
        weights on this machine.
    """
    if os.path.isfile(model):
        return sha256_of(model)
    folder = _folder(model)
    found = (sorted(folder.glob(pattern)) for pattern in _WEIGHTS) if folder else ()
    files = next(filter(None, found), [])
    if len(files) < 2:
        return sha256_of(files[0]) if files else None
    lines = ''.join(f'{sha256_of(file)}  {file.name}\n' for file in files)
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
        try:
            settings = json.loads((_folder(model) / 'config.json').read_text(encoding='utf-8'))
        except (TypeError, OSError, ValueError):  # no folder; no such file; not JSON
            return None
    return hashlib.sha256(
        json.dumps(_without_remarks(settings), sort_keys=True).encode()
    ).hexdigest()


def _without_remarks(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {key: _without_remarks(value) for key, value in settings.items() if key not in _REMARKS}


def _folder(model: str | os.PathLike) -> Path | None:
    """A folder, or that of a hub name in the cache of huggingface_hub; asks no network."""
    from huggingface_hub import snapshot_download

    if os.path.isdir(model):
        return Path(model)
    try:
        return Path(snapshot_download(str(model), local_files_only=True))
    except (OSError, ValueError):  # not there; not of the form of a hub name
        return None
