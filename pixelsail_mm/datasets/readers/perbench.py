"""Readers of PerBench: detailed captions, multiple choice and segmentation with visual prompts."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import require_keys
from pixelsail_mm.datasets.readers.osprey import parse_choices
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import NUM_PROMPTS, PROMPT_TOKENS, SEG_TOKEN

# Asked by the authors' release; MCQ_QUESTION has no blank before "Select".
CAPTION_QUESTION = (
    'Can you provide me with a detailed description of the region in the picture '
    'marked by <Prompt0>? Please provide as detailed as possible.'
)
MCQ_QUESTION = (
    'Please answer the question according to the <Prompt0>. {question}Select a correct choice.'
)
# How a second answer begins where the first one has no mask.
SECOND_ANSWER = f'It is {SEG_TOKEN}.'


class PerBenchDataset(PixelDataset):
    """Base of the readers of PerBench, which is for evaluation only.

    The files are JSON lists; every entry has ``image_name``, a path below the image folder.

    Args:
        ann_file: The file.
        test_mode: Must stay true.
        **kwargs: See :class:`PixelDataset`.

    Raises:
        ValueError: ``test_mode=False``.
    """

    task = ''
    keys: tuple[str, ...] = ()

    def __init__(self, ann_file: str, test_mode: bool = True, **kwargs) -> None:
        if not test_mode:
            raise ValueError(
                f'{type(self).__name__}: PerBench is for evaluation only; remove test_mode=False'
            )
        super().__init__(ann_file=ann_file, test_mode=True, **kwargs)

    def parse(self, entry: dict, where: str) -> Iterable[dict]:
        """Give the items of an entry.

        Args:
            entry: Entry that has all :attr:`keys`.
            where: Its position in the file, for errors.

        Returns:
            dicts with ``human``, ``gpt``, ``masks``, ``prompts``, ``meta`` (the task's own part).

        Raises:
            BadSampleError: The entry cannot be used.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement parse')

    def load_data_list(self) -> Iterator[dict]:
        """Items of all entries."""
        for i, items in self.parse_list(self._parse, ('image_name', *self.keys)):
            for j, item in enumerate(items):
                yield dict(item, id=f'{i}_{j}')

    def _parse(self, entry: dict, where: str) -> list[dict]:
        name = self.text(entry, 'image_name', where)
        path = osp.join(self.data_prefix['img_path'], name)
        return [dict(item, img_path=path, image_id=name) for item in self.parse(entry, where)]

    def text(self, holder: dict, key: str, where: str) -> str:
        """Give a text of an entry or its part; raises BadSampleError if it is none, or blank."""
        value = holder[key]
        if not isinstance(value, str) or not value.strip():
            raise self.fault(
                f'{where}.{key}', f'must be a text that is not blank, got {value!r:.60}'
            )
        return value

    def parts(
        self, entry: dict, key: str, keys: Iterable[str], where: str
    ) -> Iterator[tuple[dict, str]]:
        """Give the objects that an entry lists, each with its position in the file.

        Raises:
            BadSampleError: ``entry[key]`` is not a list of objects with these ``keys``.
        """
        if not isinstance(entry[key], list):
            raise self.fault(f'{where}.{key}', f'must be a list, got {type(entry[key]).__name__}')
        for j, part in enumerate(entry[key]):
            require_keys(part, keys, self.ann_file, f'{where}.{key}[{j}]')
            yield part, f'{where}.{key}[{j}]'

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; there is always one turn."""
        info = self.get_data_info(index)
        return self.canonical_record(
            info,
            info['id'],
            self.task,
            [dict(human=info['human'], gpt=info['gpt'])],
            info['masks'],
            info['prompts'],
            image_id=info['image_id'],
            **info['meta'],
        )


@DATASETS.register_module()
class PerBenchCaptionDataset(PerBenchDataset):
    """Detailed captions of marked objects; an item is an object.

    Keys read: ``object_annotations[].segmentation`` and ``.caption``. The object is
    ``<Prompt0>``; ``meta['references']`` holds its caption.

    Args:
        ann_file: ``STBench_Detailed_Caption.json``.
        **kwargs: See :class:`PixelDataset`.
    """

    task = 'region'
    keys = ('object_annotations',)

    def __init__(self, ann_file: str = 'STBench_Detailed_Caption.json', **kwargs) -> None:
        super().__init__(ann_file=ann_file, **kwargs)

    def parse(self, entry: dict, where: str) -> Iterator[dict]:
        """See :meth:`PerBenchDataset.parse`."""
        for part, place in self.parts(
            entry, 'object_annotations', ('segmentation', 'caption'), where
        ):
            caption = self.text(part, 'caption', place)
            yield dict(
                human=CAPTION_QUESTION,
                gpt=caption,
                masks=[],
                prompts=[dict(id=0, mask=part['segmentation'])],
                meta=dict(references=[caption]),
            )


@DATASETS.register_module()
class PerBenchMCQDataset(PerBenchDataset):
    """Multiple-choice questions about a marked object; an item is a question.

    Keys read: ``mcqs[].object`` (the mask), ``.question`` (with its options) and ``.answer``. The
    object is ``<Prompt0>``; ``meta`` holds ``choices`` and ``answer``.

    Args:
        ann_file: ``STBench_MCQ.json``.
        **kwargs: See :class:`PixelDataset`.
    """

    task = 'mcq'
    keys = ('mcqs',)

    def __init__(self, ann_file: str = 'STBench_MCQ.json', **kwargs) -> None:
        super().__init__(ann_file=ann_file, **kwargs)

    def parse(self, entry: dict, where: str) -> Iterator[dict]:
        """See :meth:`PerBenchDataset.parse`."""
        for part, place in self.parts(entry, 'mcqs', ('object', 'question', 'answer'), where):
            question = self.text(part, 'question', place)
            choices = parse_choices(question)
            if len(choices) < 2:
                raise self.fault(
                    f'{place}.question',
                    f'has no options "A. ... B. ..." that can be read: {question!r:.120}',
                )
            answer = self.text(part, 'answer', place)
            yield dict(
                human=MCQ_QUESTION.replace('{question}', question),
                gpt=answer,
                masks=[],
                prompts=[dict(id=0, mask=part['object'])],
                meta=dict(choices=choices, answer=answer),
            )


@DATASETS.register_module()
class PerBenchVRESDataset(PerBenchDataset):
    """Segmentation by a text that refers to visual prompts; an item is an entry.

    Keys read: ``question``, ``answer`` and ``segmentations`` (tag -> mask). The i-th tag of the
    file is ``<Prompti>``, targets count too. A tag in the question is a visual prompt, any other
    tag in the answer a target. Tags are found as whole words, longest first.

    Targets come in the order in which the answer first names them, so that the i-th ``[SEG]`` of a
    model is compared with the i-th target; ``meta['targets']`` holds their tags,
    ``meta['first_in_file']`` the number of the one that comes first in the file (the only one that
    the release compares), ``meta['answer_text']`` the answer as the file has it. An answer without
    a mask is asked for again, with the beginning ``meta['retry_prefix']``.

    Args:
        ann_file: ``STBench_VRES.json``.
        paper: Reproduce the authors' release: targets in the order of the file, whatever the
            order of the answer, and tags found inside longer words too (``obj1`` in ``obj10``).
        **kwargs: See :class:`PixelDataset`.
    """

    task = 'refseg'
    keys = ('question', 'answer', 'segmentations')

    def __init__(self, ann_file: str = 'STBench_VRES.json', paper: bool = False, **kwargs) -> None:
        self.paper = paper
        super().__init__(ann_file=ann_file, **kwargs)

    def parse(self, entry: dict, where: str) -> list[dict]:
        """See :meth:`PerBenchDataset.parse`."""
        masks = entry['segmentations']
        if not isinstance(masks, dict) or not masks or not all(tag.strip() for tag in masks):
            raise self.fault(
                f'{where}.segmentations', f'must be a dict of tags and masks, got {masks!r:.60}'
            )
        ids = {tag: i for i, tag in enumerate(masks)}
        question, answer = (self.text(entry, key, where) for key in ('question', 'answer'))
        find = _inside if self.paper else _as_words
        asked = find(ids, question)
        targets = [tag for tag in find(ids, answer) if tag not in asked]
        self._check(ids, asked, targets, where)
        tokens = {tag: PROMPT_TOKENS[ids[tag]] for tag in asked}
        if self.paper:
            human, gpt = question, ' '.join([SEG_TOKEN] * len(targets))
            for tag, token in tokens.items():
                human = human.replace(tag, token)
        else:
            human = _pattern(ids).sub(lambda found: tokens[found.group()], question)
            gpt = _mark(answer, ids, {**tokens, **dict.fromkeys(targets, SEG_TOKEN)})
        return [
            dict(
                human=human,
                gpt=gpt,
                masks=[masks[tag] for tag in targets],
                prompts=[dict(id=ids[tag], mask=masks[tag]) for tag in asked],
                meta=dict(
                    targets=targets,
                    answer_text=answer,
                    retry_prefix=SECOND_ANSWER,
                    first_in_file=targets.index(min(targets, key=ids.__getitem__)),
                ),
            )
        ]

    def _check(self, ids: dict[str, int], asked: list[str], targets: list[str], where: str) -> None:
        unused = [tag for tag in ids if tag not in asked and tag not in targets]
        if unused:
            raise self.fault(
                f'{where}.segmentations',
                f'the tags {unused} are '
                'neither in the question nor in the answer; correct the texts or '
                'remove the masks',
            )
        if not targets:
            raise self.fault(f'{where}.answer', 'names no target: all tags are in the question')
        beyond = [tag for tag in asked if ids[tag] >= NUM_PROMPTS]
        if beyond:
            raise self.fault(
                f'{where}.segmentations',
                f'the tags {beyond} of '
                f'the question come after the first {NUM_PROMPTS}, for which '
                'there are prompts; list them first',
            )


def _pattern(tags: Iterable[str]) -> re.Pattern:
    """Any of the tags as a whole word; where several begin, the longest."""
    words = []
    for tag in sorted(tags, key=len, reverse=True):
        before, after = (
            r'(?<!\w)' if re.match(r'\w', tag) else '',
            r'(?!\w)' if re.search(r'\w\Z', tag) else '',
        )
        words.append(f'{before}{re.escape(tag)}{after}')
    return re.compile('|'.join(words))


def _as_words(tags: Iterable[str], text: str) -> list[str]:
    """Tags in a text, in the text's order and each once."""
    return list(dict.fromkeys(_pattern(tags).findall(text)))


def _inside(tags: Iterable[str], text: str) -> list[str]:
    """Tags that occur anywhere in a text, in the order of ``tags``."""
    return [tag for tag in tags if tag in text]


def _mark(text: str, tags: Iterable[str], tokens: dict[str, Any]) -> str:
    """Replace tags by their tokens; a target stays as it is when it is named again."""
    seen: set[str] = set()

    def token(found: re.Match) -> str:
        tag = found.group()
        again = tag in seen and tokens[tag] == SEG_TOKEN
        seen.add(tag)
        return tag if again else tokens[tag]

    return _pattern(tags).sub(token, text)
