"""Batches that hold other things on each process, for the real model in miniature."""

from itertools import product

import torch
from torch import nn

from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import make_sample

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
