"""Predictions on the disk, from which an interrupted evaluation continues."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, barrier, get_rank, is_main_process
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from pixelsail_mm.checkpoints.formats.checkpoint_files import remove, replace_when_complete
from pixelsail_mm.datasets.files.masks import decode_masks, mask_to_rle
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.setting_differences import differences

_SETTINGS = 'settings.json'
_START_ANEW = 'run without --resume, which replaces them, or give another --work-dir'
_NAMED_DIFFERENCES = 5


class PredictionStore:
    """Predictions of one test set, one line of JSON per batch.

    ``settings.json`` holds what the predictions depend on; ``rank<r>.jsonl`` what process ``r``
    predicted, each line with the number of its batch, a checksum of the model's inputs, and what
    the model added to each sample: masks as run lengths, numbers without loss. Any number of
    processes may continue what any other number has written, since all of them read all files.

    A line is handed to the operating system as soon as its batch is done: a process that is killed
    loses at most the batch it was at. What is left of a line cut off at the end of a file is
    dropped.

    Args:
        folder: Where the files lie; all processes must see the same.
        settings: What the predictions depend on, as plain values.
        resume: Use what is there. Otherwise it is removed.

    Raises:
        ConfigError: In :meth:`open`, what is there was made with other settings, or is damaged.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.folder = Path(folder)
        self._settings = json.loads(json.dumps(settings, default=str))
        self._resume = resume
        self._places: dict[int, tuple[Path, int]] = {}
        self._file = None

    def open(self) -> None:
        """Open the stored predictions, or delete them; every process must call this."""
        if is_main_process() and not (self._resume and (self.folder / _SETTINGS).is_file()):
            self._clear()
        barrier()
        self._check_settings()
        ends = {path: self._index(path) for path in sorted(self.folder.glob('rank*.jsonl'))}
        # Nobody may write before all have read, and all must have read the same.
        if len({repr(sorted(numbers)) for numbers in all_gather_object(list(self._places))}) > 1:
            raise ConfigError(
                f'{self.folder}: the processes see different files there; --work-dir '
                'must be on a disk that all of them share'
            )
        own = self.folder / f'rank{get_rank()}.jsonl'
        self._file = open(own, 'ab')
        self._file.truncate(ends.get(own, 0))

    def close(self) -> None:
        """Close the file of this process."""
        if self._file is not None:
            self._file.close()

    def __contains__(self, number: int) -> bool:
        """Whether the predictions of a batch were there when the store was opened."""
        return number in self._places

    def write(
        self,
        number: int,
        checksum: str,
        samples: Sequence[BaseDataElement],
        known: Sequence[Mapping[str, Iterable[str]]],
    ) -> None:
        """Append the predictions of a batch.

        Args:
            number: Number of the batch.
            checksum: :func:`checksum_of` its inputs.
            samples: What the model returned.
            known: :func:`fields_of` the samples before prediction; all else is prediction.
        """
        lines = [_encode_sample(sample, before) for sample, before in zip(samples, known)]
        line = json.dumps(dict(batch=number, inputs=checksum, samples=lines), sort_keys=True)
        self._file.write(f'{line}\n'.encode())
        self._file.flush()

    def fill(self, number: int, checksum: str, samples: Sequence[BaseDataElement]) -> None:
        """Put the stored predictions of a batch into its samples.

        Raises:
            ConfigError: The predictions were made for other inputs.
        """
        path, offset = self._places[number]
        with open(path, 'rb') as handle:
            handle.seek(offset)
            stored = json.loads(handle.readline())
        names = [_name(sample) for sample in samples]
        if stored['inputs'] != checksum or [one['name'] for one in stored['samples']] != names:
            raise ConfigError(
                f'--resume: {path} holds predictions for other inputs than those of '
                f'batch {number} ({names[0]} ...): annotations, images or the code '
                f'of the pipeline changed; {_START_ANEW}'
            )
        for sample, one in zip(samples, stored['samples']):
            for field, value in one['metainfo'].items():
                sample.set_metainfo({field: value})
            for field, value in one['data'].items():
                sample.set_field(_decode(value, str(path), field), field)

    def _clear(self) -> None:
        if self._resume:
            print_log(
                f'--resume: no predictions in {self.folder}; starting from the beginning',
                logger='current',
                level=logging.WARNING,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob('rank*.jsonl'):
            remove(path)
        with replace_when_complete(self.folder / _SETTINGS) as unfinished:
            Path(unfinished).write_text(json.dumps(self._settings, indent=2))

    def _check_settings(self) -> None:
        path = self.folder / _SETTINGS
        try:
            stored = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f'--resume: {path} is damaged ({error}); {_START_ANEW}') from error
        changes = [
            f'{key}: {before!r} -> {now!r}'
            for key, before, now in differences(stored, self._settings)
        ]
        if changes:
            more = len(changes) - _NAMED_DIFFERENCES
            listed = '\n  '.join(changes[:_NAMED_DIFFERENCES] + [f'and {more} more'] * (more > 0))
            raise ConfigError(
                f'--resume: the predictions in {self.folder} were made with other '
                f'settings (stored -> now):\n  {listed}\n{_START_ANEW}'
            )

    def _index(self, path: Path) -> int:
        """Note the batches of a file; give the length of its undamaged part."""
        end = 0
        with open(path, 'rb') as handle:
            for line in handle:
                try:
                    number = json.loads(line)['batch'] if line.endswith(b'\n') else None
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f'--resume: {path} is damaged at byte {end} ({error}); '
                        'delete this file, and its batches are predicted again'
                    ) from error
                if number is None:
                    print_log(
                        f'{path}: dropped its last line, which is incomplete',
                        logger='current',
                        level=logging.WARNING,
                    )
                    break
                self._places.setdefault(number, (path, end))
                end += len(line)
        return end


def fields_of(sample: BaseDataElement) -> dict[str, set[str]]:
    """Names of the fields that a sample has."""
    return dict(metainfo=set(sample.metainfo_keys()), data=set(sample.keys()))


def checksum_of(*values: Any) -> str:
    """Checksum of nested lists and dicts of tensors, arrays and plain values."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(values):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes | np.ndarray]:
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray):
        yield f'{value.dtype}{value.shape}'.encode()
        yield np.ascontiguousarray(value)
    elif isinstance(value, Mapping):
        yield from _parts([[key, value[key]] for key in sorted(value)])
    elif isinstance(value, (list, tuple)):
        yield f'[{len(value)}'.encode()
        for item in value:
            yield from _parts(item)
    else:
        yield f'{value!r};'.encode()


def _name(sample: BaseDataElement) -> list[str]:
    return [str(sample.get('dataset', '')), str(sample.get('sample_id', ''))]


def _encode_sample(sample: BaseDataElement, known: Mapping[str, Iterable[str]]) -> dict:
    return dict(
        name=_name(sample),
        metainfo={
            key: _plain(value, key)
            for key, value in sample.metainfo_items()
            if key not in known['metainfo']
        },
        data={
            key: _encode(value, key) for key, value in sample.items() if key not in known['data']
        },
    )


def _encode(value: Any, key: str) -> Any:
    """Spell a field as JSON; :func:`_decode` gives exactly the same value."""
    if not isinstance(value, torch.Tensor):
        return _plain(value, key)
    value = value.detach().cpu()
    kind = dict(dtype=str(value.dtype).removeprefix('torch.'), shape=list(value.shape))
    if value.dtype == torch.bool and value.ndim == 3:
        return dict(kind, rle=[mask_to_rle(mask) for mask in value.numpy()])
    if value.is_floating_point() and value.isnan().any():
        # JSON has one NaN; sign and payload of others would be lost.
        return dict(kind, bits=value.flatten().view(torch.uint8).numpy().tobytes().hex())
    # A Python float holds every other float32, and JSON every Python float.
    return dict(kind, values=value.flatten().tolist())


def _plain(value: Any, key: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_plain(item, key) for item in value]
    raise TypeError(
        f'the model put a {type(value).__name__} into field {key!r} of a sample, which '
        'cannot be stored: give tensors, or None, bool, int, float, str or lists of '
        'these'
    )


def _decode(value: Any, path: str, key: str) -> Any:
    if not isinstance(value, dict):
        return value
    if 'rle' in value:
        _, height, width = value['shape']
        return torch.from_numpy(decode_masks(value['rle'], height, width, path, key))
    dtype = getattr(torch, value['dtype'])
    values = (
        torch.frombuffer(bytearray.fromhex(value['bits']), dtype=dtype)
        if 'bits' in value
        else torch.tensor(value['values'], dtype=dtype)
    )
    return values.reshape(value['shape'])
