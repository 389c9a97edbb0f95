"""Readers of COCO panoptic annotations: instances and classes by name."""

from __future__ import annotations

import json
import os.path as osp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.resources import files
from math import inf
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import load_json, require_keys
from pixelsail_mm.datasets.readers.refcoco import TEST_QUESTION
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.errors import AnnotationError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import SEG_TOKEN

# Appended to the questions by the authors' release; checkpoints depend on the exact strings.
INSTANCE_MODE = ' Segmentation in the instance mode.'
SEMANTIC_MODE = ' Segmentation in the semantic mode.'
# Category ids of COCO panoptic: things up to 90, stuff from 92 on, both with gaps.
_LAST_THING = 90

# Category id to name, and whether it is a thing.
ClassTable = dict[int, tuple[str, bool]]


def load_coco_panoptic_names() -> dict[int, str]:
    """Names of the 133 classes of COCO panoptic by category id, in the order of the ids.

    They are the official names made readable: the endings ``-merged``, ``-other`` and ``-stuff``
    are dropped, ``wall-`` and ``floor-`` move behind their kind (``wall-brick`` is ``brick wall``)
    and other hyphens become blanks. Two names are those of the authors' release instead: ``lamp``
    (130, officially light) and ``tennis net`` (138, net).
    """
    data = files('pixelsail_mm.datasets.templates') / 'data' / 'coco_panoptic_classes.json'
    classes = json.loads(data.read_text(encoding='utf-8'))['classes']
    return {int(category_id): name for category_id, name in classes.items()}


class PanopticDataset(PixelDataset):
    """Base of the readers of a panoptic JSON file and its folder of PNGs.

    Keys read: ``annotations[file_name, image_id, segments_info[id, area?]]`` and, if present,
    ``images[id, file_name, height?, width?]``. The image of an annotation is the one of that id in
    ``images``, otherwise the PNG's name with ``.jpg``. A mask is ``dict(png=path, ids=[...])``:
    readers never open a PNG, and the pipeline decodes it once per sample. So a segment is known to
    be empty by its ``area`` of 0 only, and is then dropped.

    In training an item is an image with all its segments, in test mode what :meth:`test_parts`
    makes of it. A subclass gives :meth:`parse_segment` and :meth:`record`.

    Args:
        ann_file: The panoptic JSON file.
        num_turns: Most turns per training sample.
        **kwargs: See :class:`PixelDataset`. ``data_prefix``: ``img_path`` is the folder of the
            images, ``seg_map_path`` that of the PNGs; by default the one beside ``ann_file`` with
            its name without ``.json``, as in COCO.

    Raises:
        ValueError: ``num_turns`` is below 1.
    """

    def __init__(self, ann_file: str, num_turns: int = 5, **kwargs) -> None:
        if num_turns < 1:
            raise ValueError(f'{type(self).__name__}: num_turns={num_turns} must be at least 1')
        self.num_turns = num_turns
        super().__init__(ann_file=ann_file, **kwargs)

    def _join_prefix(self) -> None:
        super()._join_prefix()
        self.data_prefix.setdefault('seg_map_path', osp.splitext(self.ann_file)[0])

    def load_data_list(self) -> Iterator[dict]:
        """Items: images with their segments, or parts of them in test mode."""
        content = load_json(self.ann_file, 'ann_file', dict)
        require_keys(content, ('annotations',), self.ann_file, 'ann_file')
        for key in ('annotations', 'images'):
            if not isinstance(content.get(key) or [], list):
                raise AnnotationError(self.ann_file, key, 'must be a list; is it the right file?')
        images = self._image_table(content.get('images') or [])
        classes = self.class_table(content.get('categories') or [])
        for i, annotation in enumerate(content['annotations'] or []):
            where = f'annotations[{i}]'
            require_keys(
                annotation, ('file_name', 'image_id', 'segments_info'), self.ann_file, where
            )
            item = self.usable(self._parse, annotation, where, images, classes)
            if item is None:
                continue
            if not self.test_mode and item['segments']:
                yield item
            elif self.test_mode:
                yield from (dict(item, segments=part) for part in self.test_parts(item['segments']))

    def _image_table(self, images: list) -> dict[Any, dict]:
        table = {}
        for i, image in enumerate(images):
            require_keys(image, ('id', 'file_name'), self.ann_file, f'images[{i}]')
            sizes = [image.get(side) for side in ('height', 'width')]
            if not (
                isinstance(image['id'], (int, str))
                and isinstance(image['file_name'], str)
                and all(size is None or isinstance(size, int) for size in sizes)
            ):
                raise AnnotationError(
                    self.ann_file,
                    f'images[{i}]',
                    'needs a number as id, a text '
                    'as file_name and numbers as height and width; correct it',
                )
            table[image['id']] = image
        return table

    def _parse(self, annotation: dict, where: str, images: dict, classes: ClassTable) -> dict:
        file_name, image_id = annotation['file_name'], annotation['image_id']
        if not (
            isinstance(file_name, str)
            and isinstance(image_id, (int, str))
            and isinstance(annotation['segments_info'], list)
        ):
            raise self.fault(
                where,
                'needs a text as file_name, a number as '
                'image_id and a list as segments_info; correct or remove it',
            )
        segments = []
        for j, segment in enumerate(annotation['segments_info']):
            place = f'{where}.segments_info[{j}]'
            segment_id = segment.get('id') if isinstance(segment, dict) else None
            if not isinstance(segment_id, int) or segment_id < 1:
                raise self.fault(
                    place,
                    'needs an id above 0, which is that of '
                    f'pixels without label, got {segment_id!r}; correct it',
                )
            if segment.get('area') != 0:
                parsed = self.parse_segment(segment, place, classes)
                segments += [] if parsed is None else [dict(parsed, id=segment_id)]
        image = images.get(image_id, {})
        image_name = image.get('file_name') or osp.splitext(file_name)[0] + '.jpg'
        return dict(
            img_path=osp.join(self.data_prefix['img_path'], image_name),
            png=osp.join(self.data_prefix['seg_map_path'], file_name),
            image_id=image_id,
            height=image.get('height'),
            width=image.get('width'),
            segments=segments,
        )

    def class_table(self, categories: Any) -> ClassTable:
        """What :meth:`parse_segment` is to know of the file's ``categories``."""
        return {}

    def parse_segment(self, segment: dict, where: str, classes: ClassTable) -> dict | None:
        """Check one segment.

        Args:
            segment: An entry of ``segments_info``.
            where: Its place in the file.
            classes: See :meth:`class_table`.

        Returns:
            What items keep of the segment beside its id; None leaves it out.

        Raises:
            BadSampleError: It is at fault.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement parse_segment')

    def test_parts(self, segments: list[dict]) -> list[list[dict]]:
        """Segments of each item of test mode, given all of an image; by default each its own."""
        return [[segment] for segment in segments]

    def panoptic_record(
        self, info: dict, task: str, turns: list[dict], masks=(), prompts=(), **test_meta
    ) -> Record:
        """Make a record, see :meth:`PixelDataset.canonical_record`.

        ``test_meta`` is what ``meta`` holds in test mode only; the first value, which tells the
        items of an image apart, ends the sample id.
        """
        if not self.test_mode:
            return self.canonical_record(info, info['image_id'], task, turns, masks, prompts)
        name = f'{info["image_id"]}_{next(iter(test_meta.values()))}'
        test_meta['image_id'] = info['image_id']
        return self.canonical_record(info, name, task, turns, masks, prompts, **test_meta)


def segment_mask(info: dict, *segments: dict) -> dict:
    """Mask spelling of some segments of an item, joined."""
    return dict(png=info['png'], ids=[segment['id'] for segment in segments])


class COCOSegmentsDataset(PanopticDataset):
    """Base of the readers that name the segments' classes; crowds are left out.

    Further keys read: ``segments_info[category_id, iscrowd?, bbox?]`` and, if present,
    ``categories[id, name, isthing?]``.

    Args:
        ann_file: The panoptic JSON file.
        names_from_file: Take all names from the file's ``categories``, for data whose category ids
            overlap COCO's with another meaning. By default ids of COCO have the names of
            :func:`load_coco_panoptic_names`, and the file names the others.
        **kwargs: See :class:`PanopticDataset`.
    """

    def __init__(
        self, ann_file: str = 'panoptic_train2017.json', names_from_file: bool = False, **kwargs
    ) -> None:
        self.names_from_file = names_from_file
        # Kept, since a cached index depends on it.
        self.coco_names = load_coco_panoptic_names()
        super().__init__(ann_file=ann_file, **kwargs)

    def class_table(self, categories: Any) -> ClassTable:
        """The file's classes and, unless ``names_from_file``, all of COCO's."""
        ours = {} if self.names_from_file else self.coco_names
        table = {number: (name, number <= _LAST_THING) for number, name in ours.items()}
        if not isinstance(categories, list):
            raise AnnotationError(
                self.ann_file, 'categories', 'must be a list of dicts; is it the right file?'
            )
        for i, category in enumerate(categories):
            require_keys(category, ('id', 'name'), self.ann_file, f'categories[{i}]')
            category_id, name = category['id'], category['name']
            if not isinstance(category_id, int) or not isinstance(name, str) or not name.strip():
                raise AnnotationError(
                    self.ann_file,
                    f'categories[{i}]',
                    f'needs a whole number as id and a text as name, got {category_id!r} and '
                    f'{name!r}; correct it',
                )
            known = table.get(category_id, (name.strip(), True))
            table[category_id] = known[0], bool(category.get('isthing', known[1]))
        return table

    def parse_segment(self, segment: dict, where: str, classes: ClassTable) -> dict | None:
        """See :meth:`PanopticDataset.parse_segment`."""
        category_id = segment.get('category_id')
        if not isinstance(category_id, int) or category_id not in classes:
            raise self.fault(
                f'{where}.category_id',
                f"{category_id!r} is neither in the file's categories nor one of COCO panoptic; "
                'add it to categories',
            )
        crowd = segment.get('iscrowd')
        if crowd not in (None, 0, 1):  # a text '0' would leave the segment out unnoticed
            raise self.fault(f'{where}.iscrowd', f'must be 0 or 1, got {crowd!r:.60}')
        if crowd:
            return None
        name, thing = classes[category_id]
        left = self._left(segment, where)
        return dict(category_id=category_id, name=name, thing=thing, left=left)

    def _left(self, segment: dict, where: str) -> float | None:
        """Leftmost column of a segment; None if the file does not tell."""
        box = segment.get('bbox')
        if box is None:
            return None
        if not (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(number, (int, float)) and abs(number) < inf for number in box)
        ):
            raise self.fault(
                f'{where}.bbox',
                f'must be [x, y, width, height], all finite, got {box!r:.60}; correct or remove it',
            )
        return box[0]


def _by_class(segments: list[dict]) -> list[list[dict]]:
    """Segments of each class, classes in the order of their first segments."""
    groups = defaultdict(list)
    for segment in segments:
        groups[segment['category_id']].append(segment)
    return list(groups.values())


def _left_to_right(segments: list[dict]) -> list[dict]:
    if any(segment['left'] is None for segment in segments):
        return segments
    return sorted(segments, key=lambda segment: segment['left'])


@DATASETS.register_module()
class COCOPanopticDataset(COCOSegmentsDataset):
    """Segmentation of all instances of a class, or of the stuff of a class, by its name.

    A turn is about one class of the image. Thing: ``name-1 [SEG] name-2 [SEG].``, one mask per
    instance and as many as there are, from left to right by the ``bbox`` of the segments. (The
    authors' release finds the leftmost pixels in the decoded masks; without bboxes the instances
    keep the order of the file.) Stuff: ``name [SEG].`` The mode is appended to the question.

    Training: of more than ``num_turns`` classes as many are drawn; the turns keep the order of the
    classes' first segments. Test mode: an item is one class of one image.

    Args:
        ann_file: The panoptic JSON file.
        questions: Template list (name or strings) with ``{x}`` for the class.
        test_question: Question of test mode, with ``{x}``.
        **kwargs: See :class:`COCOSegmentsDataset` and :class:`PanopticDataset`.
    """

    task = 'panoptic'

    def __init__(
        self,
        ann_file: str = 'panoptic_train2017.json',
        questions: str | Sequence[str] = 'segmentation_questions',
        test_question: str = TEST_QUESTION,
        **kwargs,
    ) -> None:
        self.questions = load_templates(questions)
        self.test_question = test_question
        super().__init__(ann_file=ann_file, **kwargs)

    def test_parts(self, segments: list[dict]) -> list[list[dict]]:
        """One item per class."""
        return _by_class(segments)

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        classes = _by_class(info['segments'])
        drawn = range(len(classes))
        if not self.test_mode and len(classes) > (num_turns or self.num_turns):
            drawn = sorted(rng.permutation(len(classes))[: num_turns or self.num_turns])
        turns, masks = [], []
        for segments in (classes[i] for i in drawn):
            phrase, mode = self.phrase(segments)
            question = self.test_question
            if not self.test_mode:
                question = self.questions[rng.integers(len(self.questions))]
            answer, parts = self.answer(segments, rng)
            turns.append(dict(human=question.replace('{x}', phrase) + mode, gpt=answer))
            masks += [segment_mask(info, *part) for part in parts]
        first = classes[0]
        return self.panoptic_record(
            info,
            self.task,
            turns,
            masks,
            category_id=first[0]['category_id'],
            class_name=first[0]['name'],
            expression=self.phrase(first)[0],
        )

    def phrase(self, segments: list[dict]) -> tuple[str, str]:
        """Phrase and mode by which the segments of a class are asked for."""
        return segments[0]['name'], INSTANCE_MODE if segments[0]['thing'] else SEMANTIC_MODE

    def answer(
        self, segments: list[dict], rng: np.random.Generator
    ) -> tuple[str, list[list[dict]]]:
        """Answer about the segments of a class, and the segments of each ``[SEG]`` in it."""
        name = segments[0]['name']
        if not segments[0]['thing']:
            return f'{name} {SEG_TOKEN}.', [segments]
        texts = [f'{name}-{i} {SEG_TOKEN}' for i in range(1, len(segments) + 1)]
        return ' '.join(texts) + '.', [[segment] for segment in _left_to_right(segments)]


@DATASETS.register_module()
class COCOSemanticDataset(COCOPanopticDataset):
    """Segmentation of a whole class, things too, as one mask: "all the {name}".

    Classes are drawn as in :class:`COCOPanopticDataset`.

    Args:
        ann_file: The panoptic JSON file.
        answers: Template list (name or strings) with one ``[SEG]`` each; test mode has the first.
        **kwargs: See :class:`COCOPanopticDataset`.
    """

    task = 'semantic'

    def __init__(
        self,
        ann_file: str = 'panoptic_train2017.json',
        answers: str | Sequence[str] = 'segmentation_answers',
        **kwargs,
    ) -> None:
        self.answers = load_templates(answers)
        super().__init__(ann_file=ann_file, **kwargs)

    def phrase(self, segments: list[dict]) -> tuple[str, str]:
        """See :meth:`COCOPanopticDataset.phrase`."""
        return f'all the {segments[0]["name"]}', SEMANTIC_MODE

    def answer(
        self, segments: list[dict], rng: np.random.Generator
    ) -> tuple[str, list[list[dict]]]:
        """See :meth:`COCOPanopticDataset.answer`."""
        number = 0 if self.test_mode else rng.integers(len(self.answers))
        return self.answers[number], [segments]
