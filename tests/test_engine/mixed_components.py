"""Batches that hold other things on each process, for the real model in miniature."""

from itertools import product

import torch
from torch import nn

from pixelsail_mm.registry import DATASETS, MODELS
from pixelsail_mm.testing.tiny_models import make_sample
from pixelsail_mm.tokenization import SpecialTokens, build_tokenizer

#: Iterations in which both processes have the same kind of batch.
ALIKE = 4
#: Grids of patches in a batch of two samples; None is a sample without image.
GRIDS = dict(
    equal=((2, 3), (2, 3)), unequal=((2, 3), (3, 2)), one=((2, 2), None), none=(None, None)
)
#: (grids, with masks, with prompts) of a batch.
KINDS = [
    kind
    for kind in product(GRIDS, (True, False), (True, False))
    if kind[0] != 'none' or kind[1:] == (False, False)
]
#: Pairs of kinds, for rank 0 and rank 1, one pair for each iteration: each kind meets
#: four others.
PAIRS = [(KINDS[0], KINDS[0])] * ALIKE + [
    (kind, KINDS[(place + shift) % len(KINDS)])
    for shift in (4, 6)
    for place, kind in enumerate(KINDS)
]


def make_batch(tokens, kind, seed=0, **options):
    """Two packed samples; the second has fewer masks and no prompt."""
    grids, masks, prompts = kind
    return [
        make_sample(
            tokens,
            grid,
            num_segs=(2 - place) if masks and grid else 0,
            prompt_ids=(3, 0) if prompts and not place else (),
            text_length=10 + place,
            seed=seed + place,
            **options,
        )
        for place, grid in enumerate(GRIDS[grids])
    ]


@DATASETS.register_module()
class MixedBatches(torch.utils.data.Dataset):
    """Micro-batch ``2 * t + r`` of two samples is of the kind ``PAIRS[t][r]``."""

    def __init__(self, tokenizer):
        self.tokens = SpecialTokens.from_tokenizer(build_tokenizer(tokenizer))

    def __len__(self):
        return 4 * len(PAIRS)

    def __getitem__(self, draw):
        micro_batch, place = divmod(draw % len(self), 2)
        kind = PAIRS[micro_batch // 2][micro_batch % 2]
        inputs, sample = make_batch(self.tokens, kind, seed=2 * micro_batch)[place]
        if micro_batch % 3:
            sample.gt_points = torch.full((len(sample.gt_masks), 2), 0.25)
        return dict(inputs=inputs, data_samples=sample)


@MODELS.register_module()
class SomeMapsExpert:
    """An expert that knows every second image."""

    def __call__(self, data_samples):
        maps = []
        for sample in data_samples:
            number = int(sample.sample_id.split('-')[1])
            generator = torch.Generator().manual_seed(number)
            maps.append(torch.rand(4, 2, 2, generator=generator) if number % 4 < 2 else None)
        return maps


@MODELS.register_module()
class WeighedChannels(nn.Module):
    """A neck as a user may write it: weights of its own, a list in and a list out."""

    def __init__(self, in_channels, patch_size):
        super().__init__()
        self.out_channels = in_channels
        self.weight = nn.Parameter(torch.ones(in_channels))

    def forward(self, maps):
        return [feature * self.weight for feature in maps]
