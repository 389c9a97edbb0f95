"""Reader of referring segmentation in the RefCOCO layout."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import load_tables, require_keys
from pixelsail_mm.datasets.files.restricted_pickle import PlainUnpickler, load_plain_pickle
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.errors import AnnotationError
from pixelsail_mm.registry import DATASETS

# Asked in evaluation by the authors' release.
TEST_QUESTION = 'Please segment {x} in this image.'


def clean_phrase(raw: str) -> str:
    """Lower-case a phrase and remove one final full stop (authors' release)."""
    phrase = raw.strip().lower()
    return (phrase[:-1] if phrase.endswith('.') else phrase).strip()


def other_image_permutation(groups: Sequence[Any], seed: int) -> np.ndarray:
    """Permutation that gives every item the partner of another image.

    Args:
        groups: Image of each item.
        seed: Seed of the order of images.

    Returns:
        int array p with ``groups[p[i]] != groups[i]`` for all i.

    Raises:
        ValueError: One image holds more than half of the items.
    """
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    largest = int(np.bincount(labels).max()) if len(labels) else 0
    if 2 * largest > len(labels):
        raise ValueError(f'one image has {largest} of {len(labels)} items')
    ranks = np.random.default_rng(seed).permutation(labels.max() + 1)
    order = np.argsort(ranks[labels], kind='stable')
    permutation = np.empty(len(labels), int)
    permutation[order] = np.roll(order, -largest)
    return permutation


def _pack_mask(entry: dict) -> dict:
    """Pickle the mask of an annotation as it is parsed: a polygon takes a third of the memory."""
    if entry.get('segmentation'):  # the others stay, for readers ask whether there is a mask
        entry['segmentation'] = pickle.dumps(entry['segmentation'], protocol=4)
    return entry


def _unpack_mask(mask: Any, seen: dict[bytes, Any]) -> Any:
    if isinstance(mask, bytes):
        if mask not in seen:
            seen[mask] = PlainUnpickler(BytesIO(mask)).load()
        return seen[mask]
    if isinstance(mask, dict) and 'union' in mask:
        return dict(union=[_unpack_mask(part, seen) for part in mask['union']])
    return mask


def _unpack_masks(item: dict) -> dict:
    """Item with its masks as the file spells them; references to one object share its mask."""
    seen: dict[bytes, Any] = {}
    return dict(
        item, refs=[dict(ref, mask=_unpack_mask(ref['mask'], seen)) for ref in item['refs']]
    )


def _check_id(value: Any, file: str, where: str) -> None:
    if not isinstance(value, (int, str)):
        raise AnnotationError(file, where, f'must be a number, got {value!r:.60}')


@DATASETS.register_module()
class RefCOCODataset(PixelDataset):
    """RefCOCO, RefCOCO+, RefCOCOg and anything in their layout.

    Paths and keys are those of MMDetection's ``RefCocoDataset``. Two flaws of that class, which
    the authors' release inherits, are not followed: it keeps only the last of several references
    to one object, and it draws one sentence per reference when it is built. Here all references
    stay and the sentence is drawn with the sample. The pickle is read without running code.

    Training: an item is an image with at least one reference of the split, with ``num_turns``
    turns. Test mode: an item is one sentence of one reference, as the file normalises it
    (``sent``), with the fixed question.

    Args:
        ann_file: ``instances.json``.
        split_file: ``refs(unc).p`` or ``refs(umd).p``.
        data_prefix: ``dict(img_path=folder of the images)``.
        split: Split of the references, e.g. ``'train'``, ``'val'``, ``'testA'``.
        num_turns: Turns per training sample.
        replacement: Draw references with replacement, always giving ``num_turns`` turns (authors'
            release). False draws distinct (reference, sentence) pairs, at most ``num_turns``.
        paper: Reproduce the collapse of several references to one object and the sentence frozen
            when the dataset is built, for comparison with the paper.
        questions: Template list (name or strings) with ``{x}`` for the phrase.
        answers: Template list (name or strings) with one ``[SEG]`` each.
        test_question: Question of test mode, with ``{x}``.
        shuffle_expressions: Control of grounding, test mode only: every item gets the expression
            of another image and keeps its own mask, so a model that listens must fail.
        with_boxes: Give records ``boxes`` too: the annotations' ``bbox`` as ``[x1, y1, x2, y2]`` in
            pixels, one for each mask.
        **kwargs: See :class:`PixelDataset`.
    """

    file_options = ('split_file',)

    def __init__(
        self,
        ann_file: str = 'instances.json',
        split_file: str = 'refs(unc).p',
        data_prefix: Mapping[str, str] | None = None,
        split: str = 'train',
        num_turns: int = 5,
        replacement: bool = True,
        paper: bool = False,
        questions: str | Sequence[str] = 'segmentation_questions',
        answers: str | Sequence[str] = 'segmentation_answers',
        test_question: str = TEST_QUESTION,
        shuffle_expressions: bool = False,
        with_boxes: bool = False,
        **kwargs,
    ) -> None:
        self.split_file = split_file
        self.split = split
        self.num_turns = num_turns
        self.replacement = replacement
        self.paper = paper
        self.questions = load_templates(questions)
        self.answers = load_templates(answers)
        self.test_question = test_question
        self.shuffle_expressions = shuffle_expressions
        self.with_boxes = with_boxes
        if shuffle_expressions and not kwargs.get('test_mode'):
            raise ValueError(
                'RefCOCODataset: shuffle_expressions=True is a control for '
                'evaluation; set test_mode=True as well'
            )
        super().__init__(ann_file=ann_file, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items: images with their references, or single sentences in test mode.

        All is checked at once; only the masks, which take most of the memory, come with the items.
        """
        return map(_unpack_masks, self._packed_items())

    def _packed_items(self) -> list[dict]:
        """Items with the masks of :func:`_pack_mask`."""
        images, annotations = self._read_instances()
        refs = self._read_refs()
        for i, ref in enumerate(refs):
            refs[i] = self._parse_ref(ref, i, annotations)  # in place of the file's own
        refs = [ref for ref in refs if ref is not None]
        if self.paper and not self.test_mode:
            refs = self._collapse(refs)
        items = self._group_by_image(refs, images)
        if not self.test_mode:
            return items
        items = [
            dict(item, refs=[dict(ref, sentences=[sentence])])
            for item in items
            for ref in item['refs']
            for sentence in ref['sentences']
        ]
        return self._swap_expressions(items) if self.shuffle_expressions else items

    def _read_instances(self) -> tuple[dict, dict]:
        names = 'images', 'annotations'
        content = load_tables(self.ann_file, 'ann_file', names, _pack_mask)
        tables = []
        for name, key in (('images', 'file_name'), ('annotations', 'segmentation')):
            for i, entry in enumerate(content[name]):
                require_keys(entry, ('id', key), self.ann_file, f'{name}[{i}]')
                _check_id(entry['id'], self.ann_file, f'{name}[{i}].id')
            tables.append({entry['id']: entry for entry in content[name]})
        return tables[0], tables[1]

    def _refuse(self, where: str, reason: str) -> AnnotationError:
        """Make the error about the split file."""
        return AnnotationError(self.split_file, where, reason)

    def _load_refs(self) -> Any:
        """Content of the split file."""
        return load_plain_pickle(self.split_file)

    def _read_refs(self) -> list[dict]:
        refs = self._load_refs()
        if not isinstance(refs, (list, tuple)):
            raise self._refuse(
                'split_file',
                f'must hold a list of references, got {type(refs).__name__}; is it the right file?',
            )
        keys = 'ref_id', 'ann_id', 'image_id', 'split', 'sentences'
        for i, ref in enumerate(refs):
            require_keys(ref, keys, self.split_file, f'refs[{i}]')
            _check_id(ref['image_id'], self.split_file, f'refs[{i}].image_id')
        chosen = [ref for ref in refs if ref['split'] == self.split]
        if not chosen:
            splits = sorted({str(ref['split']) for ref in refs})
            raise self._refuse(
                'split', f'no reference of split {self.split!r}; the file has {splits}'
            )
        return chosen

    def _parse_ref(self, ref: dict, i: int, annotations: dict) -> dict | None:
        """Reference with its mask and cleaned sentences; None if no sentence is left."""
        mask = self._target(ref, i, annotations)
        sentences = self._parse_sentences(ref, i)
        if not sentences:
            return None
        box = dict(box=self._box(ref, annotations)) if self.with_boxes else {}
        ids = {key: ref[key] for key in ('ref_id', 'ann_id', 'image_id')}
        return dict(ids, sentences=sentences, mask=mask, **box)

    def _target(self, ref: dict, i: int, annotations: dict) -> Any:
        """Mask of a reference, in any spelling."""
        if isinstance(ref['ann_id'], (list, tuple)):
            raise self._refuse(
                f'refs[{i}].ann_id',
                'a reference to several annotations; read this file with GRefCOCODataset',
            )
        _check_id(ref['ann_id'], self.split_file, f'refs[{i}].ann_id')
        if ref['ann_id'] not in annotations:
            raise self._refuse(
                f'refs[{i}].ann_id',
                f'annotation {ref["ann_id"]} is not in {self.ann_file}; the two files do not '
                'belong together',
            )
        return annotations[ref['ann_id']]['segmentation']

    def _box(self, ref: dict, annotations: dict) -> list[float]:
        """Box of a reference's annotation; the file has x, y, width and height."""
        annotation = annotations[ref['ann_id']]
        require_keys(annotation, ('bbox',), self.ann_file, f'annotation {ref["ann_id"]}')
        x, y, width, height = annotation['bbox']
        return [x, y, x + width, y + height]

    def _parse_sentences(self, ref: dict, i: int) -> list[dict]:
        """Sentences with their cleaned phrases; empty ones are counted and left out."""
        where = f'refs[{i}].sentences'
        if not isinstance(ref['sentences'], (list, tuple)):
            raise self._refuse(
                where,
                f'must be a list, got {type(ref["sentences"]).__name__}; is it the right file?',
            )
        sentences = []
        for j, sentence in enumerate(ref['sentences']):
            require_keys(sentence, ('raw',), self.split_file, f'{where}[{j}]')
            if not isinstance(sentence['raw'], str):
                raise self._refuse(
                    f'{where}[{j}].raw',
                    f'must be a text, got {type(sentence["raw"]).__name__}; is it the right file?',
                )
            phrase = self._phrase(sentence)
            if phrase:
                sentences.append(
                    dict(
                        phrase=phrase, sent_id=sentence.get('sent_id', j), kind=sentence.get('kind')
                    )
                )
            else:
                self._skips.add('empty expression')
        return sentences

    def _phrase(self, sentence: dict) -> str:
        """What is asked for; may be empty.

        The authors' release trains with the cleaned ``raw`` text and evaluates with ``sent``.
        """
        if self.test_mode and isinstance(sentence.get('sent'), str):
            return sentence['sent'].strip()
        return clean_phrase(sentence['raw'])

    def _collapse(self, refs: list[dict]) -> list[dict]:
        """Last reference of every object with one sentence drawn for good (authors' release)."""
        return self._freeze({ref['ann_id']: ref for ref in refs}.values())

    def _freeze(self, refs: Iterable[dict]) -> list[dict]:
        """References with one of their sentences each, drawn once."""
        rng = np.random.default_rng(self.seed)
        return [
            dict(ref, sentences=[ref['sentences'][rng.integers(len(ref['sentences']))]])
            for ref in refs
        ]

    def _group_by_image(self, refs: list[dict], images: dict) -> list[dict]:
        grouped = defaultdict(list)
        for ref in refs:
            grouped[ref['image_id']].append(ref)
        items = []
        for image_id, members in grouped.items():
            if image_id not in images:
                raise self._refuse(
                    'image_id',
                    f'image {image_id} is not in {self.ann_file}; the two files do not belong '
                    'together',
                )
            where = f'image {image_id}'
            fields = self.usable(self.image_fields, images[image_id], 'file_name', where)
            if fields is not None:
                items.append(dict(fields, image_id=image_id, refs=members))
        return items

    def _swap_expressions(self, items: list[dict]) -> list[dict]:
        try:
            partners = other_image_permutation([item['image_id'] for item in items], self.seed)
        except ValueError as error:
            raise self._refuse(
                'shuffle_expressions',
                f'{error}, so not every item can get an expression of another image; use a larger '
                'split',
            ) from error
        return [
            dict(
                item, refs=[dict(item['refs'][0], sentences=items[partner]['refs'][0]['sentences'])]
            )
            for item, partner in zip(items, partners)
        ]

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        if self.test_mode:
            return self._test_record(info)
        turns, drawn = [], []
        for ref, sentence in self._draw(info['refs'], num_turns or self.num_turns, rng):
            question = self.questions[rng.integers(len(self.questions))]
            answers = self._answers_to(ref)
            turns.append(
                dict(
                    human=question.replace('{x}', sentence['phrase']),
                    gpt=answers[rng.integers(len(answers))],
                )
            )
            drawn.append(ref)
        return self._referring_record(info, info['image_id'], turns, drawn)

    def _referring_record(
        self, info: dict, name: Any, turns: list[dict], refs: list[dict], **meta
    ) -> Record:
        """Record of turns whose ``[SEG]`` tokens stand for these references."""
        masks = [ref['mask'] for ref in refs]
        record = self.canonical_record(info, name, 'refseg', turns, masks, **meta)
        if self.with_boxes:
            record['boxes'] = [ref['box'] for ref in refs]
        return record

    def _answers_to(self, ref: dict) -> list[str]:
        """Answers to choose from, with one ``[SEG]`` each."""
        return self.answers

    def _draw(self, refs: list[dict], num_turns: int, rng: np.random.Generator) -> list[tuple]:
        if not self.replacement:
            pairs = [(ref, sentence) for ref in refs for sentence in ref['sentences']]
            return [pairs[i] for i in rng.permutation(len(pairs))[:num_turns]]
        drawn = []
        for i in rng.integers(len(refs), size=num_turns):
            sentences = refs[i]['sentences']
            drawn.append((refs[i], sentences[rng.integers(len(sentences))]))
        return drawn

    def _test_record(self, info: dict) -> Record:
        ref = info['refs'][0]
        sentence = ref['sentences'][0]
        phrase = sentence['phrase']
        meta = {key: ref[key] for key in ('image_id', 'ref_id', 'ann_id')}
        if sentence['kind'] is not None:
            meta['expression_kind'] = sentence['kind']
        turn = dict(human=self.test_question.replace('{x}', phrase), gpt=self._answers_to(ref)[0])
        name = f'{ref["ref_id"]}_{sentence["sent_id"]}'
        return self._referring_record(info, name, [turn], [ref], expression=phrase, **meta)
