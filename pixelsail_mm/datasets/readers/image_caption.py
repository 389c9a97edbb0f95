"""Reader of image-caption pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import iter_json, require_keys
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.registry import DATASETS

TEST_QUESTION = 'Please write a caption for this picture.'
_CAPTION_KEYS = ('captions', 'caption')


@DATASETS.register_module()
class ImageCaptionDataset(PixelDataset):
    """Pairs of images and captions, for the pre-training of a single transformer.

    Keys read: ``image`` and ``caption`` or ``captions`` (text or a list of texts each; with both,
    ``captions``); optional ``id``, ``height`` and ``width``. Entries without a caption are counted
    and left out. A sample is one question with one caption, both drawn; in test mode the question
    is fixed, the answer is the first caption and ``meta['references']`` holds all.

    Args:
        ann_file: JSON list, or a file ``*.jsonl`` with one entry per line.
        image_key: Key of the image's path below the image folder.
        caption_key: Key of the caption or captions, in place of the two above.
        questions: Template list (name or strings).
        test_question: Question of test mode.
        **kwargs: See :class:`PixelDataset`.
    """

    def __init__(
        self,
        ann_file: str,
        image_key: str = 'image',
        caption_key: str | None = None,
        questions: str | Sequence[str] = 'caption_questions',
        test_question: str = TEST_QUESTION,
        **kwargs,
    ) -> None:
        self.image_key = image_key
        self.caption_key = caption_key
        self.questions = load_templates(questions)
        self.test_question = test_question
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items with all captions of an entry."""
        for i, entry in enumerate(iter_json(self.ann_file, 'ann_file')):
            require_keys(
                entry, (self.image_key, self._key_of_captions(entry)), self.ann_file, f'[{i}]'
            )
            item = self.usable(self._parse, entry, i)
            if item is not None:
                yield item

    def _key_of_captions(self, entry: Any) -> str:
        if self.caption_key is not None:
            return self.caption_key
        has_key = isinstance(entry, dict)
        return next((key for key in _CAPTION_KEYS if has_key and key in entry), _CAPTION_KEYS[-1])

    def _parse(self, entry: dict, i: int) -> dict:
        key = self._key_of_captions(entry)
        captions = entry[key] if isinstance(entry[key], list) else [entry[key]]
        if not all(isinstance(caption, str) for caption in captions):
            raise self.fault(
                f'[{i}].{key}', f'must be a text or a list of texts, got {entry[key]!r:.60}'
            )
        captions = [caption.strip() for caption in captions if caption.strip()]
        if not captions:
            raise self.fault(f'[{i}].{key}', 'holds no caption; remove the entry or give it a text')
        name = entry.get('id', i)
        if not isinstance(name, (str, int)):
            raise self.fault(f'[{i}].id', f'must be a text or a whole number, got {name!r:.60}')
        fields = self.image_fields(entry, self.image_key, f'[{i}]')
        return dict(fields, captions=captions, id=name)

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; there is always one turn."""
        info = self.get_data_info(index)
        captions, meta = info['captions'], {}
        if self.test_mode:
            turn = dict(human=self.test_question, gpt=captions[0])
            meta = dict(image_id=info['id'], references=captions)
        else:
            turn = dict(
                human=self.questions[rng.integers(len(self.questions))],
                gpt=captions[rng.integers(len(captions))],
            )
        return self.canonical_record(info, info['id'], 'caption', [turn], **meta)
