"""Write ShapesWorld annotations in the public formats: RefCOCO, LLaVA and Osprey."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Iterable

import numpy as np

from .presets import SPLITS, Preset
from .questions import TEXT_ONLY

_TEXT_ONLY_SHARE = 0.03
# Same protocol as the public refs files, which every Python 3 reads.
_PICKLE_PROTOCOL = 2


def dump_json(content, path: Path) -> None:
    """Write compact JSON, creating the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(',', ':')), encoding='utf-8')


def dump_refs(refs: list[dict], path: Path) -> None:
    """Pickle references in the protocol of the public files, creating the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(refs, _PICKLE_PROTOCOL))


class RefCOCOWriter:
    """Collects images, annotations and references of one RefCOCO folder.

    Args:
        categories: Category names; ids count from 1.
        image_size: Side of the square images in pixels.
    """

    def __init__(self, categories: Iterable[str], image_size: int) -> None:
        self._categories = {name: i for i, name in enumerate(categories, 1)}
        self._image_size = image_size
        self._images: list[dict] = []
        self._annotations: list[dict] = []
        self._refs: list[dict] = []
        self._num_sentences = 0
        self.kinds = {split: Counter() for split in SPLITS}

    def add_image(self, file_name: str) -> int:
        """Register an image (path below the image root) and give its id."""
        image_id = len(self._images) + 1
        self._images.append(dict(id=image_id, file_name=file_name, height=self._image_size,
                                 width=self._image_size))
        return image_id

    def add_annotation(self, image_id: int, category: str, segmentation, bbox: list[int],
                       area: int, **extra) -> int:
        """Register one annotation, with any extra keys, and give its id."""
        ann_id = len(self._annotations) + 1
        self._annotations.append(dict(
            id=ann_id, image_id=image_id, category_id=self._categories[category],
            segmentation=segmentation, bbox=bbox, area=area, iscrowd=0, **extra))
        return ann_id

    def add_ref(self, ann_id: int, split: str, sentences: list[dict]) -> None:
        """Register the sentences (dicts with ``text`` and ``kind``) of one annotation."""
        annotation = self._annotations[ann_id - 1]
        entries = []
        for sentence in sentences:
            self._num_sentences += 1
            self.kinds[split][sentence['kind']] += 1
            entries.append(dict(
                sent_id=self._num_sentences, raw=sentence['text'], sent=sentence['text'],
                tokens=sentence['text'].split(), kind=sentence['kind']))
        self._refs.append(dict(
            ref_id=len(self._refs) + 1, ann_id=ann_id, image_id=annotation['image_id'],
            file_name=self._images[annotation['image_id'] - 1]['file_name'],
            category_id=annotation['category_id'], split=split, sentences=entries,
            sent_ids=[entry['sent_id'] for entry in entries]))

    def write(self, folder: Path) -> None:
        """Write ``instances.json`` and ``refs(unc).p`` into ``folder``."""
        categories = [dict(id=i, name=name) for name, i in self._categories.items()]
        dump_json(dict(images=self._images, annotations=self._annotations,
                       categories=categories), folder / 'instances.json')
        # Pickle shares equal strings only if they are one object, which depends on the process
        # that drew them; fresh objects make the bytes depend on the content alone.
        refs = json.loads(json.dumps(self._refs))
        dump_refs(refs, folder / 'refs(unc).p')


def _conversation(turns: Iterable[tuple[str, str]], image: bool = True) -> list[dict]:
    conversation = []
    for question, answer in turns:
        marker = '<image>\n' if image and not conversation else ''
        conversation += [{'from': 'human', 'value': marker + question},
                         {'from': 'gpt', 'value': answer}]
    return conversation


class AnnotationWriter:
    """Turns image records (see :func:`.annotate.annotate_image`) into annotation files.

    Args:
        preset: Kind of ShapesWorld.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._refcoco = RefCOCOWriter(preset.kinds, preset.image_size)
        self._groups = RefCOCOWriter(('group', ), preset.image_size)
        self._osprey: dict[str, list] = {}
        self._llava: dict[str, list] = {split: [] for split in SPLITS}
        self._exact_polygons = 0
        self.num_objects = Counter()

    def add(self, split: str, file_name: str, record: dict) -> None:
        """Add one image; ``file_name`` is relative to the image root."""
        image_id = self._refcoco.add_image(file_name)
        ann_ids = []
        for item in record['objects']:
            ann_ids.append(self._refcoco.add_annotation(
                image_id, item['attributes']['kind'], item['segmentation'], item['bbox'],
                item['area'], attributes=item['attributes']))
            self._exact_polygons += isinstance(item['segmentation'], list)
        self.num_objects[split] += len(ann_ids)
        for index, sentences in record['refs']:
            self._refcoco.add_ref(ann_ids[index], split, sentences)
        if record['groups']:
            self._add_groups(split, file_name, record['groups'])
        self._add_osprey(split, file_name, record)
        self._llava[split].append(dict(
            id=Path(file_name).stem, image=file_name, height=self._preset.image_size,
            width=self._preset.image_size, conversations=_conversation(record['questions'])))

    def _add_groups(self, split: str, file_name: str, groups: list[dict]) -> None:
        image_id = self._groups.add_image(file_name)
        for group in groups:
            ann_id = self._groups.add_annotation(
                image_id, 'group', group['segmentation'], group['bbox'], group['area'],
                members=group['members'])
            self._groups.add_ref(ann_id, split, group['sentences'])

    def _add_osprey(self, split: str, file_name: str, record: dict) -> None:
        head = dict(file_name=file_name, height=self._preset.image_size,
                    width=self._preset.image_size,
                    annotation=[dict(segmentation=item['rle'], bbox=item['bbox'],
                                     area=item['area']) for item in record['objects']])
        if record['regions']:
            self._osprey.setdefault(f'osprey_{split}', []).append(
                dict(head, conversations=_conversation(record['regions'])))
        for choice in record['mcqs']:
            self._osprey.setdefault(f'osprey_{split}', []).append(dict(
                head, conversations=_conversation([(choice['question'], choice['reply'])]),
                choices=choice['choices'], answer=choice['answer'], about=choice['about']))
        for turn in record['captions']:
            self._osprey.setdefault(f'osprey_caption_{split}', []).append(
                dict(head, conversations=_conversation([turn])))

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
            sentences={split: dict(sorted(kinds.items()))
                       for split, kinds in self._refcoco.kinds.items()},
            group_sentences=sum(self._groups.kinds['train'].values()),
            osprey={name: len(records) for name, records in sorted(self._osprey.items())},
            llava={split: len(records) for split, records in self._llava.items()})

    def _add_text_only(self, rng: np.random.Generator) -> None:
        records = self._llava['train']
        for number in range(int(round(len(records) * _TEXT_ONLY_SHARE))):
            turns = [TEXT_ONLY[i] for i in rng.choice(len(TEXT_ONLY), 3, replace=False)]
            records.insert(int(rng.integers(len(records) + 1)),
                           dict(id=f'text{number:06d}',
                                conversations=_conversation(turns, image=False)))
