"""A second answer with a forced beginning, where the first one has no mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

from pixelsail_mm.models.data_preprocessor import NOT_A_PATCH, collate_rows
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
    again = _take_rows(model, inputs, rows, prefixes)
    for sample in generate_answers(model, again, asked, options):
        sample.set_metainfo(dict(retried=True))


def _take_rows(model: PixelSAIL, inputs: dict, rows: Sequence[int],
               prefixes: Sequence[list[int]]) -> dict[str, Any]:
    """Rows of a batch as a batch of their own, each followed by the ids of its prefix."""
    counts = [height * width for height, width in inputs['grids']]
    starts = [sum(counts[:row]) for row in range(len(counts))]
    batch = collate_rows([_extend(inputs, row, starts[row], prefix)
                          for row, prefix in zip(rows, prefixes)], model.tokens.pad)
    del batch['images']
    batch = model.data_preprocessor.cast_data(batch)
    batch['prompt_token_ids'] = inputs['prompt_token_ids']
    batch['vision_patches'] = torch.cat([
        inputs['vision_patches'][starts[row]:starts[row] + counts[row]] for row in rows])
    return batch


def _extend(inputs: dict, row: int, first_patch: int, prefix: list[int]) -> dict[str, Any]:
    """A row as :func:`collate_rows` takes it, with a labelled prefix behind it."""
    def extended(key: str, values: Tensor) -> Tensor:
        return torch.cat([inputs[key][row, :inputs['lengths'][row]].cpu(), values])

    ids = torch.tensor(prefix)
    patches = extended('vision_patch_indices', torch.full_like(ids, -1))
    # As in generation: text counts on from the last position.
    positions = inputs['position_ids'][:, row, :inputs['lengths'][row]].cpu()
    more = positions[:, -1:] + 1 + torch.arange(len(ids))
    return dict(
        input_ids=extended('input_ids', ids), labels=extended('labels', ids),
        patch_of=torch.where(patches >= 0, patches - first_patch, patches),
        prompt_of=extended('vp_token_indices', torch.full_like(ids, NOT_A_PATCH)),
        position_ids=torch.cat([positions, more], dim=1),
        grid=inputs['grids'][row], span=inputs['image_spans'][row], image=None, turn_ids=None)
