"""Grounded caption generation: captions whose phrases carry masks, whatever the file format."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.tokenization import SEG_TOKEN

# Asked in evaluation by the authors' release, which wants a detailed description there and a brief
# one in training.
TEST_QUESTION = (
    'Could you please give me a detailed description of the image? Please respond '
    'with interleaved segmentation masks for the corresponding parts of the answer.'
)
PHRASE_START, PHRASE_END = '<p>', '</p>'
OUTSIDE = 'phrase outside of the caption'
OVERLAPPING = 'phrase overlaps an earlier one'
NO_MASK = 'phrase without a mask'
_OWN_TOKENS = (SEG_TOKEN, PHRASE_START, PHRASE_END)
_INNER = re.compile(r'[\s"]*(.*?)[\s"]*\Z', re.DOTALL)

# First character, character behind the last one, and the masks of what is named there.
Span = tuple[int, int, list]


@dataclass(frozen=True)
class GroundedCaption:
    """A caption and its phrases.

    Attributes:
        caption: The caption without tags.
        answer: The caption with ``<p> phrase </p> [SEG]`` in place of every phrase.
        phrases: The phrases, in the order of their ``[SEG]``.
        masks: One mask per phrase.
        dropped: Reasons why spans were dropped, with their numbers.
    """

    caption: str
    answer: str
    phrases: list[str]
    masks: list[Any]
    dropped: Counter


def ground_caption(caption: str, spans: Iterable[Span]) -> GroundedCaption:
    """Tag the phrases of a caption.

    Quotes and blanks around the caption are removed, and the spans, which count characters of the
    caption as the file has it, move along. Blanks at the ends of a phrase stay outside of its
    tags. Spans are taken in the order of their start, longer ones first. Where the authors'
    release tags everything, and so corrupts the text, equal spans are joined to one phrase with
    the union of their masks, and a span that overlaps an accepted one or lies outside is dropped.

    Args:
        caption: As the annotation has it.
        spans: (start, end, masks), in any order; masks in any spelling of
            :func:`~pixelsail_mm.datasets.files.masks.decode_mask`.

    Returns:
        See :class:`GroundedCaption`; as many ``[SEG]`` as masks unless the caption itself holds
        one.
    """
    found = _INNER.match(caption)
    text, removed = found.group(1), found.start(1)
    dropped: Counter = Counter()
    joined: dict[tuple[int, int], list[list]] = defaultdict(list)
    for start, end, masks in spans:
        inside = 0 <= start < end <= len(caption)
        core = _trim(text, start - removed, end - removed) if inside else None
        if core is None or not masks:
            dropped[NO_MASK if core else OUTSIDE] += 1
        else:
            joined[core].append(masks)
    pieces, phrases, united, position = [], [], [], 0
    for start, end in sorted(joined, key=lambda span: (span[0], -span[1])):
        if start < position:
            dropped[OVERLAPPING] += len(joined[start, end])
            continue
        phrases.append(text[start:end])
        pieces += [
            text[position:start],
            f'{PHRASE_START} {text[start:end]} {PHRASE_END} {SEG_TOKEN}',
        ]
        united.append(_unite([mask for masks in joined[start, end] for mask in masks]))
        position = end
    return GroundedCaption(text, ''.join([*pieces, text[position:]]), phrases, united, dropped)


def refuse_own_tokens(text: str, file: str, where: str) -> None:
    """Raise BadSampleError if a text of a file holds a token that marks phrases and masks."""
    for token in _OWN_TOKENS:
        if token in text:
            raise BadSampleError(
                file, where, f'contains {token}, which only the reader may write; remove it'
            )


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Part of a span that lies in ``text``, without blanks at its ends; None if nothing is left."""
    start = max(start, 0)
    phrase = text[start : max(end, 0)]
    start += len(phrase) - len(phrase.lstrip())
    return (start, start + len(phrase.strip())) if phrase.strip() else None


def _unite(masks: list) -> Any:
    return masks[0] if len(masks) == 1 else dict(union=masks)


class GCGDataset(PixelDataset):
    """Base of the readers of grounded captions; they differ in their files only.

    A sample is one turn: a question that asks for a brief description, and the caption in which
    every grounded phrase is ``<p> phrase </p> [SEG]``. A caption without any such phrase is
    counted and left out in training; in test mode it stays, since the caption itself is scored.

    Args:
        ann_file: The annotation file.
        questions: Template list (name or strings).
        test_question: Question of test mode. The release's own prompt has five blanks before
            "segmentation"; give that text here for its ("paper") protocol.
        **kwargs: See :class:`PixelDataset`.
    """

    def __init__(
        self,
        ann_file: str,
        questions: str | Sequence[str] = 'gcg_questions',
        test_question: str = TEST_QUESTION,
        **kwargs,
    ) -> None:
        self.questions = load_templates(questions)
        self.test_question = test_question
        super().__init__(ann_file=ann_file, **kwargs)

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Give (position in the file, entry) of all that may become items.

        Raises:
            AnnotationError: The file is damaged or of another format.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement entries')

    def parse_entry(self, entry: Any, where: str) -> dict | None:
        """Read one entry.

        Args:
            entry: The entry.
            where: Its position, for errors.

        Returns:
            dict with ``img_path``, ``image_id``, ``caption``, ``spans`` (list of :data:`Span`)
            and, if stated, ``height`` and ``width``; None for an entry that a filter of the
            format leaves out (and counts).

        Raises:
            BadSampleError: The entry is malformed.
        """
        raise NotImplementedError(f'{type(self).__name__} must implement parse_entry')

    def numbers(self, values: Any, count: int, where: str) -> list[float]:
        """Give a list of ``count`` numbers back; raises BadSampleError if it is none."""
        numeric = isinstance(values, list) and all(
            isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
        )
        if not numeric or len(values) != count:
            raise self.fault(where, f'needs {count} numbers, got {values!r:.60}')
        return values

    def positions(self, span: Any, where: str) -> list[int]:
        """Give a pair of character positions back; raises BadSampleError if it is none."""
        if not all(isinstance(value, int) for value in self.numbers(span, 2, where)):
            raise self.fault(where, f'needs whole numbers, got {span!r:.60}')
        return span

    def load_data_list(self) -> Iterator[dict]:
        """Items with tagged captions."""
        for number, (where, entry) in enumerate(self.entries()):
            item = self.usable(self._item, entry, where)
            if item is not None:
                yield dict(item, number=number)

    def _item(self, entry: Any, where: str) -> dict | None:
        parsed = self.parse_entry(entry, where)
        if parsed is None:
            return None
        caption, spans = parsed.pop('caption'), parsed.pop('spans')
        if not isinstance(caption, str) or not _INNER.match(caption).group(1):
            raise self.fault(
                f'{where}.caption', f'must be a text that is not empty, got {caption!r:.60}'
            )
        refuse_own_tokens(caption, self.ann_file, f'{where}.caption')
        grounded = ground_caption(caption, spans)
        for reason, times in grounded.dropped.items():
            self._skips.add(reason, times)
        if not grounded.masks and not self.test_mode:
            raise self.fault(
                where, 'no phrase of the caption has a mask; nothing can be learned from it'
            )
        keys = 'caption', 'answer', 'phrases', 'masks'
        return dict(parsed, **{key: getattr(grounded, key) for key in keys})

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; there is always one turn."""
        info = self.get_data_info(index)
        meta: dict[str, Any] = {}
        if self.test_mode:
            question = self.test_question
            meta = {key: info[key] for key in ('image_id', 'caption', 'phrases')}
        else:
            question = self.questions[rng.integers(len(self.questions))]
        turn = dict(human=question, gpt=info['answer'])
        return self.canonical_record(info, info['number'], 'gcg', [turn], info['masks'], **meta)
