"""Samples of a test set that share an id, found from the annotations alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from pixelsail_mm.datasets.sample_source import Record, SampleSource
from pixelsail_mm.errors import BadSampleError

_SHOWN = 3


@dataclass
class Repeats:
    """Samples that share an id; metrics count one sample of each id.

    Attributes:
        equal: One line for each sample that is the same as an earlier one of its id.
        different: One line for each that is another sample than the first of its id.
        unusable: Errors of entries that give no sample.
    """

    equal: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unusable: list[BadSampleError] = field(default_factory=list)

    @property
    def equal_text(self) -> str:
        """Sentence on :attr:`equal`."""
        return f'{len(self.equal)} samples are listed again; each counts once: {_some(self.equal)}'

    @property
    def different_text(self) -> str:
        """Sentence on :attr:`different`, with what to do."""
        return (
            f'{len(self.different)} samples have the id of another sample: '
            f'{_some(self.different)}. Only one of each id could be counted: give every sample '
            'an id of its own (a reference: every pair of ref_id and sent_id), or remove '
            'what is there by mistake'
        )


def _some(lines: list[str]) -> str:
    more = f' and {len(lines) - _SHOWN} more' if len(lines) > _SHOWN else ''
    return '; '.join(lines[:_SHOWN]) + more


def find_repeats(dataset: SampleSource) -> Repeats:
    """Compare all samples of a test set that have equal ids; no image is opened."""
    found, first = Repeats(), {}
    for index in range(len(dataset)):
        try:
            record = dataset.record(index, np.random.default_rng([dataset.seed, index]))
        except BadSampleError as error:
            found.unusable.append(error)
            continue
        key = record['meta'].get('dataset'), str(record['meta'].get('sample_id'))
        asked = ' / '.join(turn['human'] for turn in record['conversation'])
        here = index, asked, _checksum(record)
        before = first.setdefault(key, here)
        if before is here:
            continue
        places = f'{key[1]} (items {before[0]} and {index}'
        if before[2] == here[2]:
            found.equal.append(f'{places})')
        else:
            what = f'{before[1]!r:.60} and {asked!r:.60}' if before[1] != asked else 'other targets'
            found.different.append(f'{places}: {what})')
    return found


def _checksum(record: Record) -> bytes:
    """Digest of what a sample asks and what is right; arrays count by their values."""
    content = [record.get(key) for key in ('img_path', 'conversation', 'masks', 'prompts')]
    text = json.dumps(
        content, default=lambda value: value.tolist() if hasattr(value, 'tolist') else repr(value)
    )
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
