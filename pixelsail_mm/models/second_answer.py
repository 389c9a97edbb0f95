"""A second answer with a forced beginning, where the first one has no mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import torch

from pixelsail_mm.models.data_preprocessor import IGNORE_INDEX, NOT_A_PATCH
from pixelsail_mm.models.generation import generate_answers

if TYPE_CHECKING:
    from pixelsail_mm.models.pixel_sail import PixelSAIL

# Key of the metainfo; a reader sets it where its benchmark asks again.
RETRY_PREFIX = 'retry_prefix'


def answer_again(model: PixelSAIL, inputs: dict, data_samples: list, options: dict) -> None:
    """Ask again the samples that have a ``retry_prefix`` in their metainfo and no predicted mask.

    The second answer begins with that text, whose ``[SEG]`` gives masks, and replaces the first;
    ``retried=True`` in the metainfo says so (PerBench's rule, authors' release).

    Args:
        model: The meta-architecture, in eval mode.
        inputs: Batch of the data preprocessor.
        data_samples: Its samples, with the predictions of the first answer.
        options: See :func:`~pixelsail_mm.models.generation.generate_answers`.
    """
    rows = [row for row, sample in enumerate(data_samples)
            if sample.get(RETRY_PREFIX) and not len(sample.pred_masks)]
    if not rows:
        return
    asked = [data_samples[row] for row in rows]
    prefixes = [model.tokenizer.encode(sample.get(RETRY_PREFIX), add_special_tokens=False)
                for sample in asked]
    again = _take_rows(inputs, rows, prefixes, model.tokens.pad)
    for sample in generate_answers(model, again, asked, options):
        sample.set_metainfo(dict(retried=True))


def _take_rows(inputs: dict, rows: Sequence[int], prefixes: Sequence[list[int]],
               pad: int) -> dict[str, Any]:
    """Rows of a batch as a batch of their own, each followed by the ids of its prefix."""
    old, device = inputs['lengths'], inputs['input_ids'].device
    lengths = [old[row] + len(prefix) for row, prefix in zip(rows, prefixes)]
    size = (len(rows), max(lengths))
    batch: dict[str, Any] = {
        key: torch.full(size, fill, device=device)
        for key, fill in (('input_ids', pad), ('labels', IGNORE_INDEX),
                          ('vision_patch_indices', -1), ('vp_token_indices', NOT_A_PATCH))}
    for key, tensor in batch.items():
        for i, row in enumerate(rows):
            tensor[i, :old[row]] = inputs[key][row, :old[row]]
    batch['position_ids'] = torch.zeros(3, *size, dtype=torch.long, device=device)
    counts = [height * width for height, width in inputs['grids']]
    starts = [sum(counts[:row]) for row in range(len(counts))]
    taken = 0
    for i, (row, prefix) in enumerate(zip(rows, prefixes)):
        first, end = old[row], lengths[i]
        ids = torch.tensor(prefix, device=device)
        batch['input_ids'][i, first:end] = batch['labels'][i, first:end] = ids
        positions = batch['position_ids'][:, i]
        positions[:, :first] = inputs['position_ids'][:, row, :first]
        positions[:, first:end] = positions[:, first - 1:first] + torch.arange(
            1, len(prefix) + 1, device=device)
        numbers = batch['vision_patch_indices'][i]
        numbers[numbers >= 0] += taken - starts[row]
        taken += counts[row]
    return dict(
        batch, lengths=lengths, grids=[inputs['grids'][row] for row in rows],
        image_spans=[inputs['image_spans'][row] for row in rows],
        prompt_token_ids=inputs['prompt_token_ids'],
        vision_patches=torch.cat([inputs['vision_patches'][starts[row]:starts[row] + counts[row]]
                                  for row in rows]))
