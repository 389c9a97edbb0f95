"""Reader of image-caption pairs, and what readers take from an annotation about its image."""

from __future__ import annotations

import json
import os.path as osp
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from pixelsail_mm.datasets.annotation_files import iter_json_list, require_keys
from pixelsail_mm.datasets.base import PixelDataset, Record
from pixelsail_mm.datasets.errors import AnnotationError, BadSampleError
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.registry import DATASETS

TEST_QUESTION = 'Please write a caption for this picture.'
_CAPTION_KEYS = ('captions', 'caption')
_QUESTION_WORDS = 8


def image_fields(entry: Mapping[str, Any], key: str, folder: str, file: str,
                 where: str) -> dict[str, Any]:
    """What an annotation entry says about its image, checked.

    Args:
        entry: The entry; it has ``key``.
        key: Key of the image's file name.
        folder: Folder of the images.
        file: Annotation file, for errors.
        where: Position in it, e.g. ``'[12]'``.

    Returns:
        dict with ``img_path`` and, if the entry states them, ``height`` and ``width``.

    Raises:
        BadSampleError: The name is no text, or a side is no whole number above 0.
    """
    name = entry[key]
    if not isinstance(name, str) or not name:
        raise BadSampleError(file, f'{where}.{key}', 'must be the name of the image file, got '
                             f'{name!r:.60}')
    fields: dict[str, Any] = dict(img_path=osp.join(folder, name))
    for side in ('height', 'width'):
        size = entry.get(side)
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise BadSampleError(file, f'{where}.{side}', 'must be the number of pixels of the '
                                 f"image's {side}, got {size!r:.60}; correct it or leave it out")
        fields[side] = size
    return fields


def iter_json_lines(path: str, key: str) -> Iterator[Any]:
    """Read a file of one JSON value per line; blank lines do not count.

    Args:
        path: The file, in UTF-8 (a byte-order mark is ignored).
        key: Config key that names it.

    Yields:
        The values in their order.

    Raises:
        AnnotationError: Not UTF-8, or a line is not JSON; names the line.
    """
    with open(path, encoding='utf-8-sig') as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _decode_line(line, path, number)
        except UnicodeDecodeError as error:
            raise AnnotationError(path, key, f'not UTF-8 ({error}); download or generate it '
                                  'again') from error


def _decode_line(line: str, path: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(path, f'line {number}', f'not valid JSON ({error}); download or '
                              'generate the file again') from error


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

    def __init__(self,
                 ann_file: str,
                 image_key: str = 'image',
                 caption_key: str | None = None,
                 questions: str | Sequence[str] = 'caption_questions',
                 test_question: str = TEST_QUESTION,
                 **kwargs) -> None:
        self.image_key = image_key
        self.caption_key = caption_key
        self.questions = load_templates(questions)
        self.test_question = test_question
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items with all captions of an entry."""
        read = iter_json_lines if self.ann_file.endswith('.jsonl') else iter_json_list
        for i, entry in enumerate(read(self.ann_file, 'ann_file')):
            require_keys(entry, (self.image_key, self._key_of_captions(entry)), self.ann_file,
                         f'[{i}]')
            try:
                item = self._parse(entry, i)
            except BadSampleError as error:
                if self.test_mode:
                    raise
                self._skip(error)
                continue
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
            raise BadSampleError(self.ann_file, f'[{i}].{key}', 'must be a text or a list of '
                                 f'texts, got {entry[key]!r:.60}')
        captions = [caption.strip() for caption in captions if caption.strip()]
        if not captions:
            raise BadSampleError(self.ann_file, f'[{i}].{key}', 'holds no caption; remove the '
                                 'entry or give it a text')
        name = entry.get('id', i)
        if not isinstance(name, (str, int)):
            raise BadSampleError(self.ann_file, f'[{i}].id', f'must be a text or a whole number, '
                                 f'got {name!r:.60}')
        fields = image_fields(entry, self.image_key, self.data_prefix['img_path'], self.ann_file,
                              f'[{i}]')
        return dict(fields, captions=captions, id=name)

    def num_words(self, info: dict) -> int:
        """Words of a question and the longest caption."""
        return _QUESTION_WORDS + max(len(caption.split()) for caption in info['captions'])

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; there is always one turn."""
        info = self.get_data_info(index)
        captions = info['captions']
        meta = dict(sample_id=f'{self.name}/{info["id"]}', dataset=self.name, task='caption')
        if self.test_mode:
            turn = dict(human=self.test_question, gpt=captions[0])
            meta.update(image_id=info['id'], references=captions)
        else:
            turn = dict(human=self.questions[rng.integers(len(self.questions))],
                        gpt=captions[rng.integers(len(captions))])
        return dict(img_path=info['img_path'], conversation=[turn], masks=[], prompts=[], meta=meta,
                    **{k: info[k] for k in ('height', 'width') if k in info})
