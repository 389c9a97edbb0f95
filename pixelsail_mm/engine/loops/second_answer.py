"""A second answer with a forced beginning, where the first one has no mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pixelsail_mm.models.data_preprocessor import inputs_by_sample

#: Key of the metainfo; a reader sets it where its benchmark asks again.
RETRY_PREFIX = 'retry_prefix'


def answer_twice(
    step: Callable[[Mapping[str, Any]], list], tokenizer: Any, data_batch: Mapping[str, Any]
) -> list:
    """Answer a batch; ask again where a benchmark wants a mask and the answer has none.

    That is PerBench's rule (authors' release), for samples with ``retry_prefix`` in their metainfo.
    The second answer begins with that text, whose ``[SEG]`` gives masks, and replaces the first;
    ``retried=True`` in the metainfo says so.

    Args:
        step: ``val_step`` or ``test_step`` of the model.
        tokenizer: The model's tokenizer.
        data_batch: The collated batch: ``inputs`` and ``data_samples``.

    Returns:
        The data samples with their predictions.
    """
    samples = list(step(data_batch))
    rows = [
        row
        for row, sample in enumerate(samples)
        if sample.get(RETRY_PREFIX) and not len(sample.get('pred_masks', ()))
    ]
    if not rows:
        return samples
    inputs = inputs_by_sample(data_batch['inputs'])
    again = dict(
        inputs=[_extend(inputs[row], tokenizer, samples[row].get(RETRY_PREFIX)) for row in rows],
        data_samples=[samples[row] for row in rows],
    )
    for row, sample in zip(rows, step(again)):
        sample.set_metainfo(dict(retried=True))
        samples[row] = sample
    return samples


def _extend(inputs: Mapping[str, Any], tokenizer: Any, prefix: str) -> dict[str, Any]:
    """Put a forced beginning of the answer behind a question; labels mark it as such."""
    ids = torch.tensor(tokenizer.encode(prefix, add_special_tokens=False))
    return {**inputs, **{key: torch.cat([inputs[key], ids]) for key in ('input_ids', 'labels')}}
