"""Reader of reasoning segmentation: questions that say indirectly what is meant."""

from __future__ import annotations

import json
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import require_keys
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.errors import AnnotationError, BadSampleError
from pixelsail_mm.registry import DATASETS

ANSWER = 'It is [SEG].'
# UTF-8 with or without a byte-order mark; some files of the data set are in the second one.
_ENCODINGS = ('utf-8-sig', 'cp1252')


@DATASETS.register_module()
class ReasonSegDataset(PixelDataset):
    """ReasonSeg: a folder of images, each with a JSON file of the same stem.

    Keys read: ``text`` (list), ``is_sentence`` and ``shapes`` (``label``, ``points``). Shapes
    labelled ``flag`` say nothing about pixels and are left out; a label that contains ``ignore``
    marks pixels that evaluation does not count, every other label is the target. The masks are
    painted, see :func:`~pixelsail_mm.datasets.files.masks.decode_mask`.

    Training: an item is an image, with one turn for each of up to ``num_turns`` of its texts, drawn
    without replacement; ignored pixels are background. An image without JSON file, text or target
    is counted and left out. Test mode: only the first text is asked; the record has
    ``ignore_masks`` for :class:`~pixelsail_mm.datasets.transforms.LoadIgnoreMasks`. (The authors'
    release evaluates with target and ignored pixels in one run-length code, which corrupts both.)

    Args:
        ann_file: Folder of the JSON files; by default that of the images.
        data_prefix: ``dict(img_path=folder of the images)``.
        num_turns: Most turns per training sample.
        img_suffix: Suffix of the images.
        sentence_questions: Template list (name or strings) with ``{x}`` for a text that is a
            sentence.
        phrase_questions: The same for a text that is a phrase.
        **kwargs: See :class:`PixelDataset`.
    """

    def __init__(
        self,
        ann_file: str = '',
        data_prefix: Mapping[str, str] | None = None,
        num_turns: int = 3,
        img_suffix: str = '.jpg',
        sentence_questions: str | Sequence[str] = 'reason_sentence_questions',
        phrase_questions: str | Sequence[str] = 'reason_phrase_questions',
        **kwargs,
    ) -> None:
        self.num_turns = num_turns
        self.img_suffix = img_suffix
        self.questions = {
            True: load_templates(sentence_questions),
            False: load_templates(phrase_questions),
        }
        data_prefix = dict(data_prefix or {'img_path': '.'})
        super().__init__(
            ann_file=ann_file or data_prefix['img_path'], data_prefix=data_prefix, **kwargs
        )

    def required_paths(self) -> dict[str, str]:
        """The folders, and the JSON files, on each of which a kept index depends."""
        names = os.listdir(self.ann_file) if osp.isdir(self.ann_file) else []
        files = {
            f'ann_file/{name}': osp.join(self.ann_file, name)
            for name in names
            if name.endswith('.json')
        }
        return {**super().required_paths(), **files}

    def load_data_list(self) -> Iterator[dict]:
        """Images with their texts and shapes, in the order of their names."""
        folder = self.data_prefix['img_path']
        names = sorted(name for name in os.listdir(folder) if name.endswith(self.img_suffix))
        if not names:
            raise AnnotationError(
                folder,
                'data_prefix.img_path',
                f'has no image named *{self.img_suffix}; check the folder and img_suffix',
            )
        for name in names:
            stem = name[: len(name) - len(self.img_suffix)]
            item = self.usable(self._parse, osp.join(self.ann_file, f'{stem}.json'))
            if item is None:
                continue
            yield dict(item, img_path=osp.join(folder, name), stem=stem)

    def _parse(self, path: str) -> dict:
        entry = _read_json(path)
        require_keys(entry, ('text', 'is_sentence', 'shapes'), path, 'content')
        if entry['is_sentence'] not in (True, False):
            raise BadSampleError(
                path, 'is_sentence', f'must be true or false, got {entry["is_sentence"]!r:.60}'
            )
        shapes = _parse_shapes(entry['shapes'], path)
        # An evaluation without target is an honest one; training would teach to mask nothing.
        if not self.test_mode and all(shape['ignore'] for shape in shapes):
            raise BadSampleError(
                path, 'shapes', 'no shape is a target; label one or remove the image'
            )
        return dict(
            texts=self._parse_texts(entry['text'], path),
            shapes=shapes,
            is_sentence=bool(entry['is_sentence']),
        )

    def _parse_texts(self, texts: Any, path: str) -> list[str]:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadSampleError(path, 'text', 'must be a list of texts')
        asked = [text.strip() for text in (texts[:1] if self.test_mode else texts)]
        kept = [text for text in asked if text]
        if not kept:
            raise BadSampleError(path, 'text', 'no text to ask for; give one or remove the image')
        if len(kept) < len(asked):
            self._skips.add('empty expression', len(asked) - len(kept))
        return kept

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        questions, shapes = self.questions[info['is_sentence']], info['shapes']
        meta, ignored = {}, {}
        if self.test_mode:
            (text,) = info['texts']
            asked = [questions[0].replace('{x}', text)]
            kind = 'sentence' if info['is_sentence'] else 'phrase'
            meta = dict(expression=text, expression_kind=kind)
            ignored = dict(ignore_masks=[dict(painted=shapes, part='ignore')])
        else:
            order = rng.permutation(len(info['texts']))[: num_turns or self.num_turns]
            asked = [
                questions[rng.integers(len(questions))].replace('{x}', info['texts'][i])
                for i in order
            ]
        turns = [dict(human=question, gpt=ANSWER) for question in asked]
        masks = [dict(painted=shapes) for _ in turns]
        record = self.canonical_record(info, info['stem'], 'reasonseg', turns, masks, **meta)
        return dict(record, **ignored)


def _read_json(path: str) -> Any:
    """Content of one annotation file, in any of the encodings that occur."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except FileNotFoundError as error:
        raise BadSampleError(
            path, 'ann_file', 'no such file beside the image; add it or remove the image'
        ) from error
    for encoding in _ENCODINGS:
        try:
            return json.loads(content.decode(encoding))
        except UnicodeDecodeError:
            continue
        except (ValueError, RecursionError) as error:
            raise BadSampleError(
                path, 'content', f'not valid JSON ({error}); download it again'
            ) from error
    raise BadSampleError(
        path, 'content', f'in none of the encodings {list(_ENCODINGS)}; save it in UTF-8'
    )


def _parse_shapes(shapes: Any, path: str) -> list[dict]:
    """Shapes as :func:`decode_mask` paints them, without those that say nothing about pixels."""
    if not isinstance(shapes, list):
        raise BadSampleError(path, 'shapes', f'must be a list, got {type(shapes).__name__}')
    parsed = []
    for i, shape in enumerate(shapes):
        require_keys(shape, ('label', 'points'), path, f'shapes[{i}]')
        if not isinstance(shape['label'], str):
            raise BadSampleError(
                path, f'shapes[{i}].label', f'must be a text, got {shape["label"]!r:.60}'
            )
        label = shape['label'].lower()
        if label != 'flag':
            parsed.append(dict(points=shape['points'], ignore='ignore' in label))
    return parsed
