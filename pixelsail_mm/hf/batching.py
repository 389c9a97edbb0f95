"""The one layout in which processor and model hand over a batch.

========================= ==================================================================
``input_ids``             ``(B,L)`` int64, padded on the left
``attention_mask``        ``(B,L)`` int64, 0 on padding
``answer_mask``           ``(B,L)`` int64, 1 on the forced beginning of the answer
``pixel_values``          ``(B,3,H,W)`` uint8, RGB, resized to whole patches; zeros behind an
                          image's end. The model normalises, as it does in training.
``image_sizes``           ``(B,2)`` height and width of each image in it; 0, 0 without one
``image_grids``           ``(B,2)`` rows and columns of its patches
``prompt_map``            ``(B,h,w)`` int64, id of the visual prompt on each patch, -2 for none
``original_sizes``        ``(B,2)`` height and width before resizing, the size of masks
========================= ==================================================================

A batch without any image has the first three only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pixelsail_mm.tokenization import IGNORE_INDEX, NO_PROMPT

TEXT_KEYS = ('input_ids', 'attention_mask', 'answer_mask')
IMAGE_KEYS = ('pixel_values', 'image_sizes', 'image_grids', 'prompt_map', 'original_sizes')


def pad_images(
    images: Sequence[Tensor | None],
    prompt_maps: Sequence[Tensor | None],
    original_sizes: Sequence[tuple[int, int]],
) -> dict[str, Tensor]:
    """Batch of images of any sizes, some of which may be absent.

    Args:
        images: uint8 ``(3,H,W)`` each.
        prompt_maps: int64 ``(h,w)`` each.
        original_sizes: Height and width before resizing.

    Returns:
        The keys of :data:`IMAGE_KEYS`; ``{}`` if every image is absent.
    """
    if all(image is None for image in images):
        return {}
    sizes = torch.tensor([(0, 0) if image is None else image.shape[1:] for image in images])
    grids = torch.tensor([(0, 0) if grid is None else grid.shape for grid in prompt_maps])
    pixels = torch.zeros(len(images), 3, *sizes.amax(0).tolist(), dtype=torch.uint8)
    prompts = torch.full((len(images), *grids.amax(0).tolist()), NO_PROMPT)
    for row, (image, prompt_map) in enumerate(zip(images, prompt_maps)):
        if image is not None:
            pixels[row, :, : image.shape[1], : image.shape[2]] = image
            prompts[row, : prompt_map.shape[0], : prompt_map.shape[1]] = prompt_map
    return dict(
        pixel_values=pixels,
        image_sizes=sizes,
        image_grids=grids,
        prompt_map=prompts,
        original_sizes=torch.tensor([tuple(size) for size in original_sizes]),
    )


def pad_samples(packed: Sequence[dict], pad: int) -> dict[str, Tensor]:
    """Batch of packed samples.

    Args:
        packed: What ``PackPixelInputs`` gives.
        pad: Id of the padding token.

    Returns:
        The whole batch, see the module's text.
    """
    inputs = [sample['inputs'] for sample in packed]
    batch = dict(
        input_ids=_pad_left([row['input_ids'] for row in inputs], pad),
        attention_mask=_pad_left([torch.ones_like(row['input_ids']) for row in inputs], 0),
        answer_mask=_pad_left([(row['labels'] != IGNORE_INDEX).long() for row in inputs], 0),
    )
    sizes = [sample['data_samples'].ori_shape for sample in packed]
    return batch | pad_images(
        [row['image'] for row in inputs], [row['prompt_map'] for row in inputs], sizes
    )


def _pad_left(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side='left')


def unpad_samples(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    pixel_values: Tensor | None = None,
    image_sizes: Tensor | None = None,
    image_grids: Tensor | None = None,
    prompt_map: Tensor | None = None,
) -> list[dict]:
    """Samples as the data preprocessor takes them; ids on the CPU, pixels where they are.

    The module's text says what the inputs are; here any side may be padded. ``labels`` is
    ``(B,L)`` int64. Without ``pixel_values`` the batch has no images, without ``image_sizes`` all
    images have the size of ``pixel_values``, without ``prompt_map`` (which needs ``image_grids``)
    there are no visual prompts.
    """
    input_ids, labels = input_ids.cpu(), labels.cpu()
    valid = attention_mask.bool().cpu()
    samples = []
    for row in range(len(input_ids)):
        sample = dict(
            input_ids=input_ids[row][valid[row]],
            labels=labels[row][valid[row]],
            image=None,
            prompt_map=None,
        )
        if pixel_values is not None:
            height, width = (
                pixel_values.shape[2:] if image_sizes is None else image_sizes[row].tolist()
            )
            if height and width:
                sample['image'] = pixel_values[row, :, :height, :width]
                if prompt_map is not None:
                    rows, columns = image_grids[row].tolist()
                    sample['prompt_map'] = prompt_map[row, :rows, :columns].cpu()
        samples.append(sample)
    return samples
