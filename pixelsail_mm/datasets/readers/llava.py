"""Reader of visual instruction data in the LLaVA format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset, select_turns
from pixelsail_mm.datasets.readers.conversations import parse_turns
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.registry import DATASETS


@DATASETS.register_module()
class LLaVADataset(PixelDataset):
    """Instruction data such as ``llava_v1_5_mix665k.json``.

    Keys read: ``conversations`` and, unless the item is text only, ``image`` (path below the image
    folder). Broken entries are counted and left out when the file is read.

    Args:
        ann_file: The JSON list.
        max_turns: Most turns per sample; None keeps all.
        shuffle_turns: Draw the kept turns in any order in training, for files whose turns do not
            depend on each other.
        **kwargs: See :class:`PixelDataset`.
    """

    def __init__(
        self, ann_file: str, max_turns: int | None = None, shuffle_turns: bool = False, **kwargs
    ) -> None:
        self.max_turns = max_turns
        self.shuffle_turns = shuffle_turns
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items with paired turns."""
        for i, item in self.parse_list(self._parse, ('conversations',)):
            yield dict(item, id=str(item.get('id', i)))

    def _parse(self, entry: dict, where: str) -> dict:
        # A text-only entry has no image, or an empty one.
        image = self.image_fields(entry, 'image', where) if entry.get('image') else {}
        return dict(
            {key: entry[key] for key in ('id', 'height', 'width') if key in entry},
            img_path=image.get('img_path'),
            turns=parse_turns(entry['conversations'], self.ann_file, where),
        )

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        shuffle = self.shuffle_turns and not self.test_mode
        turns = select_turns(info['turns'], num_turns or self.max_turns, shuffle, rng)
        return self.canonical_record(info, info['id'], 'vqa', turns)
