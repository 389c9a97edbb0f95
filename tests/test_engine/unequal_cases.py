"""Cases in which two processes have other batches: what each of them holds at each step."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import torch

from pixelsail_mm.testing.tiny_models import make_sample

#: What the images of a batch may be; ``some`` is a batch of which every second sample has one.
IMAGES = ('equal', 'unequal', 'some', 'none')
_GRIDS = ((2, 3), (3, 2), (1, 4), (2, 2))
#: Steps in which both processes have the same kind of batch, before any other: in the first steps
#: ZeRO-3 itself compares the processes' calls, and later it relies on their order.
ALIKE = 4


@dataclass(frozen=True)
class Batch:
    """What one process gets in one step.

    Args:
        size: Samples.
        images: One of :data:`IMAGES`.
        masks: Samples with an image have one or two masks, otherwise none.
        prompts: Samples with an image have up to two prompts, otherwise none.
        others: The targets of the other heads are there, where masks are.
        seed: Of ids, pictures, masks and their numbers.
    """

    size: int
    images: str
    masks: bool
    prompts: bool
    others: bool = True
    seed: int = 0

    def grids(self) -> list[tuple[int, int] | None]:
        """Patches of each sample; None is a sample without image."""
        if self.images == 'none':
            return [None] * self.size
        return [
            None
            if self.images == 'some' and place % 2
            else _GRIDS[(self.images == 'unequal') * place % len(_GRIDS)]
            for place in range(self.size)
        ]

    def samples(self, tokens, image_layout: str = 'block') -> list:
        """Packed samples, see :func:`~pixelsail_mm.testing.tiny_models.make_sample`."""
        draw = random.Random(self.seed)
        made = []
        for place, grid in enumerate(self.grids()):
            inputs, sample = make_sample(
                tokens,
                grid,
                num_segs=draw.randint(1, 2) if self.masks and grid else 0,
                prompt_ids=((3, 0), (1,), ())[draw.randrange(3 if place else 2)]
                if self.prompts and grid
                else (),
                text_length=draw.randint(8, 12),
                seed=self.seed + place,
                image_layout=image_layout,
            )
            count = len(sample.gt_masks)
            if self.others:
                sample.gt_points = torch.full((count, 2), 0.25)
                sample.gt_boxes = torch.tensor([[1.0, 2.0, 7.0, 6.0]]).repeat(count, 1)
            made.append((inputs, sample))
        return made

    def used_heads(self) -> set[str]:
        """Names of the heads that learn from the batch, of those that a model may have."""
        if not self.masks or self.images == 'none':
            return set()
        return {'mask', 'point', 'box'} if self.others else {'mask'}


@dataclass(frozen=True)
class Step:
    """Batches of the two processes in one iteration, and the case to which it belongs."""

    batches: tuple[Batch, Batch]
    case: int


def kinds(size: int) -> list[dict]:
    """All kinds of batches of a size: images x masks x prompts, as arguments of :class:`Batch`."""
    if size == 1:
        images = ('equal', 'none')
    else:
        images = IMAGES
    return [
        dict(size=size, images=image, masks=masks, prompts=prompts)
        for image, masks, prompts in product(images, (True, False), (True, False))
        if image != 'none' or not (masks or prompts)
    ]


def every_pair(sizes: tuple[int, ...] = (1, 2)) -> list[Step]:
    """Steps in which every kind meets every kind, once on each process; a case for each pair."""
    every = [kind for size in sizes for kind in kinds(size)]
    both = [(every[0], every[0])] * ALIKE + list(product(every, every))
    return [
        Step(
            tuple(
                Batch(**kind, others=(place + rank) % 3 > 0, seed=20 * place + 10 * rank)
                for rank, kind in enumerate(pair)
            ),
            case=max(0, place - ALIKE),
        )
        for place, pair in enumerate(both)
    ]


def drawn(seed: int, cases: int) -> list[Step]:
    """Steps of drawn cases: some alike, then one to three in which the processes differ.

    Args:
        seed: Of everything.
        cases: Number of cases.
    """
    draw = random.Random(seed)
    steps = []

    def batch(kind):
        return Batch(**kind, others=draw.random() < 0.7, seed=draw.randrange(10**6))

    for case in range(cases):
        alike = draw.choice(kinds(draw.randint(1, 4)))
        steps += [Step((batch(alike), batch(alike)), case) for _ in range(ALIKE)]
        steps += [
            Step(tuple(batch(draw.choice(kinds(draw.randint(1, 4)))) for _ in range(2)), case)
            for _ in range(draw.randint(1, 3))
        ]
    return steps


def plan(mode: str, seed: int = 0, cases: int = 0) -> list[Step]:
    """Steps of a run.

    Args:
        mode: ``every`` (:func:`every_pair`) or ``drawn`` (:func:`drawn`).
        seed: See there; with ``every``, and ``cases``, the pairs to take.
        cases: See there; with ``every`` 0 takes all pairs.
    """
    if mode == 'drawn':
        return drawn(seed, cases)
    steps = every_pair()
    if not cases:
        return steps
    taken = random.Random(seed).sample(steps[ALIKE:], cases)
    return steps[:ALIKE] + taken
