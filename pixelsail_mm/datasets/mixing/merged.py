"""Turns of several readers about the same image in one sample."""

from __future__ import annotations

import os.path as osp
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from pixelsail_mm.datasets.base import PixelDataset, build_pipeline
from pixelsail_mm.datasets.files.skip_counter import SkipCounter
from pixelsail_mm.datasets.mixing.combination import build_parts
from pixelsail_mm.datasets.readers.regions import named_prompts, rename_prompts
from pixelsail_mm.datasets.sample_source import Record, SampleSource
from pixelsail_mm.errors import AnnotationError, BadSampleError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import NUM_PROMPTS, SEG_TOKEN


@DATASETS.register_module()
class MergedDataset(SampleSource, Dataset):
    """Merge several readers' turns about one image into one conversation.

    Text is cheap next to image tokens, so many turns per image teach more per second. Items are
    the images of the first reader that every other reader may add turns to. The turns come in
    random order (turns of one reader keep their own order), masks follow their ``[SEG]`` tokens,
    and visual prompts of different readers get different ids.

    Args:
        datasets: Configs or built readers; they need no pipeline.
        turns: Turns of each reader per sample; None takes what the reader is configured to give.
            Entries may be None too.
        require_all: Only images that every reader knows.
        pipeline: Transforms of the merged record.
        seed: Seed of all draws. Inner seeds play no role.
        max_refetch: How many other samples are tried in place of a broken one.
        name: Name in ``meta['dataset']``.

    Raises:
        MissingFilesError: Files are missing; those of all readers are named.
        AnnotationError: No image is left.
        ValueError: ``turns`` does not fit the readers, or a reader is in test mode.
    """

    def __init__(
        self,
        datasets: Sequence[Mapping | PixelDataset],
        turns: Sequence[int | None] | None = None,
        require_all: bool = False,
        pipeline: Sequence[Mapping | Callable] = (),
        seed: int = 0,
        max_refetch: int = 100,
        name: str = 'MergedDataset',
    ) -> None:
        self.name = name
        self.seed = seed
        self.test_mode = False
        self.max_refetch = max_refetch
        self.pipeline = Compose(build_pipeline(pipeline))
        self.metainfo = dict(dataset=name)
        self._skips = SkipCounter()
        self._notes = SkipCounter(mask_numbers=False)
        self.datasets = build_parts(datasets, name, seed, pipeline=())
        self.turns = list(turns) if turns is not None else [None] * len(self.datasets)
        self._check()
        self._items = self._match_images(require_all)

    def _check(self) -> None:
        if len(self.turns) != len(self.datasets) or any(
            n is not None and n < 1 for n in self.turns
        ):
            raise ValueError(
                f'{self.name}: turns must hold a number >= 1 or None for each of the '
                f'{len(self.datasets)} datasets, got {self.turns}'
            )
        for i, part in enumerate(self.datasets):
            if part.test_mode:
                raise ValueError(
                    f'{self.name}: datasets[{i}] is in test mode; merging is for '
                    'training, evaluate the readers one by one'
                )

    def _match_images(self, require_all: bool) -> np.ndarray:
        """Item of every reader for each image, -1 where it has none: int64 (images, readers)."""
        tables = []
        for part in self.datasets:
            paths = ((part.image_path(i), i) for i in range(len(part)))
            tables.append({osp.abspath(path): i for path, i in paths if path is not None})
        rows = [[table.get(path, -1) for table in tables] for path in tables[0]]
        items = np.array(rows, np.int64).reshape(-1, len(tables))
        if require_all:
            items = items[(items >= 0).all(1)]
        if not len(items):
            files = ', '.join(part.ann_file for part in self.datasets)
            raise AnnotationError(
                files,
                'datasets',
                f'{self.name} has no image that its readers '
                'share; compare their data_root and data_prefix',
            )
        return items

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    @property
    def skipped(self) -> Counter:
        """Skipped entries and samples of the combination and of its readers."""
        return sum((part.skipped for part in self.datasets), self._skips.counts())

    @property
    def noted(self) -> Counter:
        """Numbers of values that were changed while reading, by the combination and its readers."""
        return sum((part.noted for part in self.datasets), self._notes.counts())

    def image_path(self, index: int) -> str:
        """Path of an item's image without building its record."""
        return self.datasets[0].image_path(int(self._items[index, 0]))

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; ``num_turns`` cuts the merged conversation."""
        records = []
        for part, item, wanted in zip(self.datasets, self._items[index], self.turns):
            if item >= 0:
                records.append(part.record(int(item), rng, wanted))
        streams = [_split_targets(record) for record in records]
        prompts = self._unite_prompts(records, streams, rng)
        owners = rng.permutation(np.repeat(np.arange(len(streams)), [len(s) for s in streams]))
        queues = [iter(stream) for stream in streams]
        merged = [next(queues[owner]) for owner in owners][:num_turns]
        targets = [target for _, targets in merged for target in targets]
        result = {
            **records[0],
            'conversation': [turn for turn, _ in merged],
            'masks': [mask for mask, _ in targets],
            'prompts': prompts,
        }
        result.pop('boxes', None)
        boxes = [box for _, box in targets if box is not None]
        if boxes and len(boxes) == len(targets):
            result['boxes'] = boxes
        elif boxes:
            self._notes.add(f'boxes left out: another reader gives none for its {SEG_TOKEN}')
        sizes = {k: record[k] for record in records for k in ('height', 'width') if k in record}
        meta = dict(sample_id=f'{self.name}/{index}', dataset=self.name, task='merged')
        return dict(result, meta=meta, **{k: v for k, v in sizes.items() if k not in result})

    def _unite_prompts(
        self, records: list[Record], streams: list[list], rng: np.random.Generator
    ) -> list[dict]:
        """All prompts with distinct ids; a reader whose prompts find no room loses its turns.

        Ids that a text names without marking anything ("<Prompt3> is not in the image.") are kept
        apart as well, or they would name the prompt of another reader.
        """
        united: list[dict] = []
        taken: set[int] = set()
        for record, stream in zip(records, streams):
            prompts = record['prompts']
            used = list(
                dict.fromkeys(
                    [prompt['id'] for prompt in prompts] + named_prompts(turn for turn, _ in stream)
                )
            )
            free = [k for k in range(NUM_PROMPTS) if k not in taken]
            if len(used) > len(free):
                self._skips.add(
                    f'turns dropped: more than {NUM_PROMPTS} visual prompts in one merged sample'
                )
                stream.clear()
                continue
            if not taken.isdisjoint(used):
                new = [free[i] for i in rng.permutation(len(free))]
                names = dict(zip(used, new))
                prompts = [dict(prompt, id=names[prompt['id']]) for prompt in prompts]
                stream[:] = [(rename_prompts(turn, names), targets) for turn, targets in stream]
                used = [names[k] for k in used]
            united += prompts
            taken.update(used)
        return united


def _split_targets(record: Record) -> list[tuple[dict, list]]:
    """Pair every turn with the masks of its answer; each with its box, None where it has none."""
    boxes = record.get('boxes') or [None] * len(record['masks'])
    targets = iter(zip(record['masks'], boxes))
    counts = [turn['gpt'].count(SEG_TOKEN) for turn in record['conversation']]
    if sum(counts) != len(record['masks']):
        raise BadSampleError(
            record.get('img_path'),
            'masks',
            f'{len(record["masks"])} masks for {sum(counts)} {SEG_TOKEN}; each needs exactly one',
        )
    return [
        (turn, [next(targets) for _ in range(count)])
        for turn, count in zip(record['conversation'], counts)
    ]
