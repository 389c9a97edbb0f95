"""One dataset before another."""

from __future__ import annotations

from collections import Counter
from typing import Any, Mapping, Sequence

from torch.utils.data import Dataset

from pixelsail_mm.datasets.base import SampleSource
from pixelsail_mm.datasets.combination import build_parts
from pixelsail_mm.registry import DATASETS


@DATASETS.register_module()
class CurriculumDataset(Dataset):
    """Begin a training with one dataset, then go on with another.

    The first ``lead_in`` draws of the training come from ``first``, in its own order and over again
    if it is smaller; all others come from ``then``, in the order of the sampler. The sampler has to
    know of the lead-in: every training of this package uses
    :class:`~pixelsail_mm.datasets.samplers.DrawIndexSampler`, which does.

    Args:
        first: Config or built dataset, e.g. text only.
        then: Config or built dataset; its length is the length of an epoch.
        lead_in: Draws from ``first``, of all processes together.
        seed: ``first`` gets this seed, ``then`` the next, unless they set one.
        pipeline: Pipeline of a part that does not set one.

    Raises:
        MissingFilesError: Files are missing; those of both parts are named.
        ValueError: ``lead_in`` is negative.
    """

    def __init__(self, first: Mapping | SampleSource, then: Mapping | SampleSource, lead_in: int,
                 seed: int = 0, pipeline: Sequence | None = None) -> None:
        if lead_in < 0:
            raise ValueError(f'CurriculumDataset: lead_in={lead_in} must not be negative')
        defaults = {} if pipeline is None else dict(pipeline=pipeline)
        self.first, self.then = build_parts([first, then], type(self).__name__, seed, **defaults)
        self.lead_in = lead_in
        self.metainfo = dict(datasets=[getattr(part, 'name', type(part).__name__)
                                       for part in (self.first, self.then)])

    def __len__(self) -> int:
        """Samples per epoch after the lead-in."""
        return len(self.then)

    def __getitem__(self, idx: int) -> Any:
        """Draw a sample; indices below ``lead_in`` are draws of ``first``."""
        if idx < 0:
            raise IndexError(f'draw index {idx} is negative')
        return self.first[idx] if idx < self.lead_in else self.then[idx - self.lead_in]

    @property
    def skipped(self) -> Counter:
        """Skipped samples of both parts."""
        return self.first.skipped + self.then.skipped

    @property
    def modality_length(self) -> list[int]:
        """Approximate token counts of an epoch after the lead-in."""
        return self.then.modality_length
