"""From collated samples to the tensors of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypedDict

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.tokenization import (
    IGNORE_INDEX,
    NO_PROMPT,
    NOT_A_PATCH,
    NUM_PROMPTS,
    SpecialTokens,
    build_tokenizer,
)

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class _SharedTurns(TypedDict, total=False):
    turn_ids: Tensor


class ModelInputs(_SharedTurns):
    """One batch, as :class:`PixelDataPreprocessor` gives it to every part of the model.

    B rows of L tokens, padded on the right; N patches of all images behind one another; p the patch
    side in pixels.

    Attributes:
        input_ids: int64 ``(B,L)``.
        labels: int64 ``(B,L)``, -100 where nothing is to be learned.
        position_ids: int64 ``(3,B,L)``: axes t, h, w, see :func:`position_ids`.
        vision_patches: float ``(N,3*p*p)``, normalised, flattened (channel, row, column).
        vision_patch_indices: int64 ``(B,L)``: row in ``vision_patches``, -1 elsewhere.
        vp_token_indices: int64 ``(B,L)``: K of the visual prompt that covers the patch, -2 for a
            patch without prompt, -1 elsewhere.
        prompt_token_ids: int64 ``(15,)``: ids of ``<Prompt0>`` ... ``<Prompt14>``.
        turn_ids: int64 ``(B,L)`` if any sample has independent turns: 0 on the shared part, n on
            turn n.
        grids: Per row ``(h, w)`` in patches; ``(0, 0)`` without an image.
        image_spans: Per row first image token and one past the last, or None.
        lengths: Per row number of tokens without padding.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    vision_patches: Tensor
    vision_patch_indices: Tensor
    vp_token_indices: Tensor
    prompt_token_ids: Tensor
    grids: list[tuple[int, int]]
    image_spans: list[tuple[int, int] | None]
    lengths: list[int]


def position_ids(
    length: int, image_start: int | None, grid: tuple[int, int], turn_ids: Tensor | None = None
) -> Tensor:
    """Three-axis positions (t, h, w) of one sample.

    Text counts upwards, equal on all axes. With s the index of the first patch, patch (r, c) lies
    at ``(s, s+r, s+c)`` and the token after the patches at ``s + max(h, w)`` (authors' release).

    Args:
        length: Number of tokens.
        image_start: Index of ``<vision>``; None without an image, or where its tokens count like
            text.
        grid: Rows and columns of patches.
        turn_ids: ``(length,)`` for independent turns (0 on the shared part): each turn then
            starts where the first one does.

    Returns:
        ``(3, length)`` int64.
    """
    rows, columns = grid
    positions = torch.empty(3, length, dtype=torch.long)
    if image_start is None:
        positions[:] = torch.arange(length)
    else:
        _place_image(positions, image_start + 1, rows, columns)
    if turn_ids is not None:
        numbers, sizes = torch.unique_consecutive(turn_ids, return_counts=True)
        starts = sizes.cumsum(0) - sizes
        shared = sizes[0] if numbers[0] == 0 else 0
        shift = torch.where(numbers > 0, starts - shared, 0)
        positions -= shift.repeat_interleave(sizes)
    return positions


def _place_image(positions: Tensor, first: int, rows: int, columns: int) -> None:
    """Fill ``(3,L)`` positions of a sequence whose first patch is at index ``first``."""
    count = rows * columns
    positions[:, :first] = torch.arange(first)
    patches = positions[:, first : first + count]
    patches[0] = first
    patches[1] = first + torch.arange(rows).repeat_interleave(columns)
    patches[2] = first + torch.arange(columns).repeat(rows)
    after = positions.shape[1] - first - count
    positions[:, first + count :] = first + max(rows, columns) + torch.arange(after)


def collate_rows(samples: list[dict], pad: int) -> dict:
    """Pad on the right and number the patches through the batch.

    Args:
        samples: Per sample ``input_ids``, ``labels``, ``patch_of`` (row of each token's patch,
            counted within the sample, else -1), ``prompt_of``, ``turn_ids`` (or None), all
            ``(L_i,)``; ``position_ids`` ``(3,L_i)``; ``grid``, ``span`` and ``image``.
        pad: Id of the padding token.

    Returns:
        What :meth:`PixelDataPreprocessor.forward` gives of it, on the CPU; ``images`` (those that
        are there) in place of ``vision_patches``.
    """

    def padded(key: str, filler: int) -> Tensor:
        return pad_sequence([sample[key] for sample in samples], True, filler)

    lengths = [len(sample['input_ids']) for sample in samples]
    # The running number of patches; the release used the largest index instead, which shifts every
    # sample but the first by one.
    counts = [rows * columns for rows, columns in (sample['grid'] for sample in samples)]
    offsets = torch.tensor([0, *accumulate(counts[:-1])])[:, None]
    patch_of = padded('patch_of', -1)
    positions = pad_sequence([sample['position_ids'].T for sample in samples], True)
    batch = dict(
        input_ids=padded('input_ids', pad),
        labels=padded('labels', IGNORE_INDEX),
        vision_patch_indices=torch.where(patch_of >= 0, patch_of + offsets, patch_of),
        vp_token_indices=padded('prompt_of', NOT_A_PATCH),
        position_ids=positions.permute(2, 0, 1).contiguous(),
    )
    turns = [sample['turn_ids'] for sample in samples]
    if any(turn is not None for turn in turns):
        shared = [torch.zeros(length, dtype=torch.long) for length in lengths]
        turns = [zeros if turn is None else turn for turn, zeros in zip(turns, shared)]
        batch['turn_ids'] = pad_sequence(turns, True)
    batch.update(
        images=[sample['image'] for sample in samples if sample['image'] is not None],
        grids=[sample['grid'] for sample in samples],
        image_spans=[sample['span'] for sample in samples],
        lengths=lengths,
    )
    return batch


def inputs_by_sample(inputs: list[dict] | Mapping[str, Sequence]) -> list[dict]:
    """Give the inputs of a collated batch as one dict per sample.

    Args:
        inputs: Such a list, or a mapping of lists (MMEngine's ``pseudo_collate``).
    """
    if isinstance(inputs, Mapping):
        return [dict(zip(inputs, values)) for values in zip(*inputs.values())]
    return inputs


def _checked_grid(sample: dict, index: int, p: int) -> tuple[int, int]:
    """Rows and columns of patches of a sample, after a check that its tensors fit each other."""
    ids, image = sample.get('input_ids'), sample.get('image')
    length = ids.shape[:1] if isinstance(ids, Tensor) else (0,)
    grid = (0, 0)
    if isinstance(image, Tensor) and image.dim() == 3:
        grid = (image.shape[1] // p, image.shape[2] // p)
    shapes = dict(
        input_ids=length,
        labels=length,
        turn_ids=length,
        image=(3, grid[0] * p, grid[1] * p),
        prompt_map=grid,
    )
    for key, shape in shapes.items():
        value = sample.get(key)
        if value is None and key not in ('input_ids', 'labels'):
            continue
        if (
            not isinstance(value, Tensor)
            or value.shape != shape
            or value.is_floating_point()
            or (key == 'prompt_map' and not ((value >= NO_PROMPT) & (value < NUM_PROMPTS)).all())
        ):
            kind = f'{value.dtype} {tuple(value.shape)}' if isinstance(value, Tensor) else value
            raise ConfigError(
                f'sample {index} of the batch: {key} must be whole numbers of shape '
                f'{tuple(shape)}, for patches of {p} pixels and prompts below {NUM_PROMPTS}, got '
                f'{kind!s:.80}; pack samples with PackPixelInputs, behind ResizeToGrid of the same '
                'patch_size'
            )
    return grid


@MODELS.register_module()
class PixelDataPreprocessor(BaseDataPreprocessor):
    """Normalise and cut images into patches, pad text on the right, build positions.

    Args:
        tokenizer: Tokenizer config (see :func:`~pixelsail_mm.tokenization.build_tokenizer`);
            filled in by the meta-architecture.
        patch_size: Patch side p in pixels; filled in by the meta-architecture.
        image_layout: Tokens of an image (see
            :meth:`~pixelsail_mm.tokenization.SpecialTokens.image_ids`); filled in by the
            meta-architecture. ``'block'``: patches have positions by row and column; ``'rows'``:
            image tokens count like text.
        mean: Channel means in 0..255, RGB.
        std: Channel standard deviations in 0..255, RGB.
        non_blocking: Passed to ``Tensor.to``.
    """

    def __init__(
        self,
        tokenizer: Any,
        patch_size: int = 16,
        image_layout: str = 'block',
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        self.patch_size = patch_size
        self.image_layout = image_layout
        self.tokens = SpecialTokens.from_tokenizer(build_tokenizer(tokenizer))
        self.register_buffer('mean', torch.tensor(mean).view(1, 3, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Build a batch.

        Args:
            data: ``inputs``: per sample a dict with ``input_ids`` and ``labels`` ``(L_i,)`` int64,
                optionally ``turn_ids`` ``(L_i,)`` for independent turns (0 on the shared part),
                ``image`` uint8 ``(3,H,W)`` with sides that are multiples of p (or None) and
                ``prompt_map`` int64 ``(h,w)`` (or None); ``data_samples``: list (or absent).
                A mapping of lists (MMEngine's ``pseudo_collate``) is accepted as well.
            training: Not used: both modes share every step.

        Returns:
            ``dict(inputs=ModelInputs, data_samples=...)``.

        Raises:
            ConfigError: A tensor of a sample has another shape than the others ask for, or the
                image tokens do not match the image or ``image_layout``.
        """
        samples = inputs_by_sample(data['inputs'])
        data_samples = data.get('data_samples')
        batch = collate_rows(
            [self._sample(sample, index) for index, sample in enumerate(samples)], self.tokens.pad
        )
        patches = batch.pop('images')
        batch = self.cast_data(batch)
        batch['vision_patches'] = self._patchify(patches)
        batch['prompt_token_ids'] = torch.tensor(self.tokens.prompts, device=self.device)
        if data_samples is not None:
            data_samples = self.cast_data(list(data_samples))
        return dict(inputs=batch, data_samples=data_samples)

    def _sample(self, sample: dict, index: int) -> dict:
        """Positions, span and per-token indices of one sample (patch rows start at 0)."""
        grid = _checked_grid(sample, index, self.patch_size)
        ids, image = sample['input_ids'], sample.get('image')
        length = len(ids)
        patch_of = torch.full((length,), -1, dtype=torch.long)
        prompt_of = torch.full((length,), NOT_A_PATCH, dtype=torch.long)
        where = torch.nonzero(ids == self.tokens.vpatch).squeeze(1)
        if len(where) != grid[0] * grid[1]:
            raise ConfigError(
                f'sample {index} of the batch: {len(where)} <vpatch> tokens for an image of '
                f'{grid[0]}x{grid[1]} patches; ResizeToGrid and the data preprocessor must use the '
                'same patch_size'
            )
        span = None
        if len(where):
            span = self._span(ids, int(where[0]) - 1, grid, index)
            patch_of[where] = torch.arange(len(where))
            prompt_map = sample.get('prompt_map')
            prompt_of[where] = NO_PROMPT if prompt_map is None else prompt_map.flatten().long()
        start = span[0] if span and self.image_layout == 'block' else None
        return dict(
            input_ids=ids,
            labels=sample['labels'],
            image=image,
            grid=grid,
            span=span,
            position_ids=position_ids(length, start, grid, sample.get('turn_ids')),
            patch_of=patch_of,
            prompt_of=prompt_of,
            turn_ids=sample.get('turn_ids'),
        )

    def _span(self, ids: Tensor, start: int, grid: tuple[int, int], index: int) -> tuple[int, int]:
        """Where the image tokens are, after a check that they are the expected ones."""
        expected = torch.tensor(self.tokens.image_ids(grid, self.image_layout))
        end = start + len(expected)
        if start < 0 or not torch.equal(ids[start:end], expected):
            raise ConfigError(
                f'sample {index} of the batch: its image tokens are not those of '
                f'image_layout={self.image_layout!r}; give BuildConversation the image_layout of '
                'the backbone'
            )
        return start, end

    def _patchify(self, images: list[Tensor]) -> Tensor:
        """Normalised patches ``(N,3*p*p)`` of uint8 images ``(3,H,W)``, in order."""
        p = self.patch_size
        parts = []
        for image in images:
            image = image.to(self.device)
            _, height, width = image.shape
            patches = image.view(3, height // p, p, width // p, p).permute(1, 3, 0, 2, 4)
            parts.append(patches.reshape(-1, 3, p * p))
        if not parts:
            return self.mean.new_zeros(0, 3 * p * p)
        patches = torch.cat(parts).to(self.mean.dtype)
        return ((patches - self.mean) / self.std).flatten(1)
