"""Write ShapesWorld annotations in the public formats: RefCOCO, LLaVA and Osprey."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import RefCOCOWriter, dump_json
from pixelsail_mm.worlds.shapes_world.presets import SPLITS, Preset
from pixelsail_mm.worlds.shapes_world.questions import TEXT_ONLY

_TEXT_ONLY_SHARE = 0.03


def _conversation(turns: Iterable[tuple[str, str]], image: bool = True) -> list[dict]:
    conversation = []
    for question, answer in turns:
        marker = '<image>\n' if image and not conversation else ''
        conversation += [
            {'from': 'human', 'value': marker + question},
            {'from': 'gpt', 'value': answer},
        ]
    return conversation


class AnnotationWriter:
    """Turns image records (see :func:`.annotate.annotate_image`) into annotation files.

    Args:
        preset: Kind of ShapesWorld.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._refcoco = RefCOCOWriter(preset.kinds, preset.image_size)
        self._groups = RefCOCOWriter(('group',), preset.image_size)
        self._osprey: dict[str, list] = {}
        self._llava: dict[str, list] = {split: [] for split in SPLITS}
        self._exact_polygons = 0
        self.num_objects = Counter()

    def add(self, split: str, file_name: str, record: dict) -> None:
        """Add one image; ``file_name`` is relative to the image root."""
        image_id = self._refcoco.add_image(file_name)
        ann_ids = []
        for item in record['objects']:
            ann_ids.append(
                self._refcoco.add_annotation(
                    image_id,
                    item['attributes']['kind'],
                    item['segmentation'],
                    item['bbox'],
                    item['area'],
                    attributes=item['attributes'],
                )
            )
            self._exact_polygons += isinstance(item['segmentation'], list)
        self.num_objects[split] += len(ann_ids)
        for index, sentences in record['refs']:
            self._refcoco.add_ref(ann_ids[index], split, sentences)
        if record['groups']:
            self._add_groups(split, file_name, record['groups'])
        self._add_osprey(split, file_name, record)
        self._llava[split].append(
            dict(
                id=Path(file_name).stem,
                image=file_name,
                height=self._preset.image_size,
                width=self._preset.image_size,
                conversations=_conversation(record['questions']),
            )
        )

    def _add_groups(self, split: str, file_name: str, groups: list[dict]) -> None:
        image_id = self._groups.add_image(file_name)
        for group in groups:
            ann_id = self._groups.add_annotation(
                image_id,
                'group',
                group['segmentation'],
                group['bbox'],
                group['area'],
                members=group['members'],
            )
            self._groups.add_ref(ann_id, split, group['sentences'])

    def _add_osprey(self, split: str, file_name: str, record: dict) -> None:
        head = dict(
            file_name=file_name,
            height=self._preset.image_size,
            width=self._preset.image_size,
            annotation=[
                dict(segmentation=item['rle'], bbox=item['bbox'], area=item['area'])
                for item in record['objects']
            ],
        )
        if record['regions']:
            self._osprey.setdefault(f'osprey_{split}', []).append(
                dict(head, conversations=_conversation(record['regions']))
            )
        for choice in record['mcqs']:
            self._osprey.setdefault(f'osprey_{split}', []).append(
                dict(
                    head,
                    conversations=_conversation([(choice['question'], choice['reply'])]),
                    choices=choice['choices'],
                    answer=choice['answer'],
                    about=choice['about'],
                )
            )
        for turn in record['captions']:
            self._osprey.setdefault(f'osprey_caption_{split}', []).append(
                dict(head, conversations=_conversation([turn]))
            )

    def write(self, folder: Path, rng: np.random.Generator) -> dict:
        """Write all annotation files and give their counts.

        Args:
            folder: Root of the data set.
            rng: Chooses where the text-only items of the LLaVA file go.
        """
        self._add_text_only(rng)
        self._refcoco.write(folder / 'refcoco')
        self._groups.write(folder / 'refcoco_group')
        for name, records in self._osprey.items():
            dump_json(records, folder / 'osprey' / f'{name}.json')
        for split, records in self._llava.items():
            dump_json(records, folder / 'llava' / f'llava_{split}.json')
        return dict(
            objects=dict(self.num_objects),
            exact_polygons=self._exact_polygons,
            sentences={split: dict(sorted(self._refcoco.kinds[split].items())) for split in SPLITS},
            group_sentences=sum(self._groups.kinds['train'].values()),
            osprey={name: len(records) for name, records in sorted(self._osprey.items())},
            llava={split: len(records) for split, records in self._llava.items()},
        )

    def _add_text_only(self, rng: np.random.Generator) -> None:
        records = self._llava['train']
        for number in range(int(round(len(records) * _TEXT_ONLY_SHARE))):
            turns = [TEXT_ONLY[i] for i in rng.choice(len(TEXT_ONLY), 3, replace=False)]
            records.insert(
                int(rng.integers(len(records) + 1)),
                dict(id=f'text{number:06d}', conversations=_conversation(turns, image=False)),
            )
