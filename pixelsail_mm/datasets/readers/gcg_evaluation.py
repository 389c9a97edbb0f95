"""Reader of the benchmark of grounded captions: GranD-f's validation and test files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import load_tables, require_keys, rows_by_image
from pixelsail_mm.datasets.readers.gcg import (
    PHRASE_END,
    PHRASE_START,
    TEST_QUESTION,
    ground_caption,
    refuse_own_tokens,
)
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.errors import AnnotationError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import SEG_TOKEN

# Annotations with their positions in the file, such as 'annotations[3]'.
Rows = list[tuple[str, dict]]


def tag_labels(caption: str, labels: Sequence[str]) -> tuple[str, list[int]]:
    """Write the answer that names every label once.

    A label is tagged at the first place in the caption where it stands between word borders, in
    either case, and shares no character with another label; longer labels choose first. Labels
    without a place (other readers of the public files provide for such, and for empty ones) follow
    behind the caption, so that no mask is lost.

    Args:
        caption: The caption.
        labels: The phrases.

    Returns:
        (answer, indices of the labels in the order of their ``[SEG]``).
    """
    spans: list[tuple[int, int, list]] = []
    for i in sorted(range(len(labels)), key=lambda i: -len(labels[i])):
        words = labels[i].strip()
        pattern = rf'(?<!\w){re.escape(words)}(?!\w)'
        for place in re.finditer(pattern, caption, re.IGNORECASE) if words else ():
            if all(place.end() <= start or end <= place.start() for start, end, _ in spans):
                spans.append((*place.span(), [i]))
                break
    grounded = ground_caption(caption, spans)
    rest = [i for i in range(len(labels)) if i not in grounded.masks]
    behind = [f' {PHRASE_START} {labels[i]} {PHRASE_END} {SEG_TOKEN}' for i in rest]
    return ''.join([grounded.answer, *behind]), grounded.masks + rest


@DATASETS.register_module()
class GCGEvaluationDataset(PixelDataset):
    """Grounded captions to evaluate on, two COCO files per split.

    ``val_gcg_coco_mask_gt.json`` holds the masks, ``annotations[]`` of ``{image_id,
    segmentation}``; ``val_gcg_coco_caption_gt.json`` holds ``images[]`` of ``{id}`` and
    ``annotations[]`` of ``{image_id, caption, labels}``. The i-th label of an image, a phrase of
    its caption, names the i-th mask of this image in the file. An image may have no label and no
    mask. The id of an image is the name of its file without the suffix.

    An item is an image of the captions' file, as in GLaMM's evaluation. ``meta`` holds
    ``image_id``, ``caption``, ``references`` and ``phrases``. Of several captions of an image all
    are ``references``; the labels are those of the first, which is ``caption``. Phrases and masks
    stand in the order of ``[SEG]`` in the answer, see :func:`tag_labels`.

    Args:
        ann_file: The file of masks.
        captions_file: The file of captions.
        img_suffix: End of the image files' names.
        test_question: The question. The release's own prompt has five blanks before
            "segmentation"; give that text here for its ("paper") protocol.
        test_mode: Must stay true; to train, take ``GranDfDataset`` and its siblings.
        **kwargs: See :class:`PixelDataset`.

    Raises:
        ValueError: ``test_mode=False``.
        AnnotationError: A file is damaged, or the two do not belong together.
        BadSampleError: A caption or a label is malformed, or an image has another number of labels
            than of masks.
    """

    file_options = ('captions_file',)

    def __init__(
        self,
        ann_file: str,
        captions_file: str,
        img_suffix: str = '.jpg',
        test_question: str = TEST_QUESTION,
        test_mode: bool = True,
        **kwargs,
    ) -> None:
        if not test_mode:
            raise ValueError(
                f'{type(self).__name__} is for evaluation only; remove '
                'test_mode=False, or train on GranDfDataset'
            )
        self.captions_file = captions_file
        self.img_suffix = img_suffix
        self.test_question = test_question
        super().__init__(ann_file=ann_file, test_mode=True, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items: images with their answer, phrases and masks."""
        content = load_tables(self.captions_file, 'captions_file', ('images', 'annotations'))
        image_ids = [
            self._image_id(image, f'images[{i}]') for i, image in enumerate(content['images'])
        ]
        captions = rows_by_image(content['annotations'], ('caption',), self.captions_file)
        tables = load_tables(self.ann_file, 'ann_file', ('annotations',))
        masks = rows_by_image(tables['annotations'], ('segmentation',), self.ann_file)
        # Masks that nobody asks for would make the test set easier without a word.
        names = set(map(str, image_ids))
        for name, rows in masks.items():
            if name not in names:
                raise AnnotationError(
                    self.ann_file,
                    f'{rows[0][0]}.image_id',
                    f'image {name} is not in {self.captions_file}; give the two files of the '
                    'same split',
                )
        for number, image_id in enumerate(image_ids):
            name = str(image_id)
            yield dict(
                self._grounded(name, captions.get(name, []), masks.get(name, [])),
                image_id=image_id,
                number=number,
                img_path=self.find_image(f'{name}{self.img_suffix}'),
            )

    def _image_id(self, image: Any, where: str) -> str | int:
        require_keys(image, ('id',), self.captions_file, where)
        image_id = image['id']
        if isinstance(image_id, bool) or not isinstance(image_id, (str, int)) or image_id == '':
            raise AnnotationError(
                self.captions_file,
                f'{where}.id',
                f'must be the name of the image file without its suffix, got {image_id!r:.60}',
            )
        return image_id

    def _grounded(self, image_id: str, captions: Rows, masks: Rows) -> dict:
        """What is said about an image, and the masks in the order in which the answer names them.

        Raises:
            BadSampleError: See the class.
        """
        if not captions:
            raise self.fault(
                'annotations',
                f'has no caption of image_id {image_id}, which its images list; download it again',
                self.captions_file,
            )
        references = [
            self._text(entry['caption'], f'{where}.caption').strip() for where, entry in captions
        ]
        for (where, _), reference in zip(captions, references):
            if not reference:
                reason = 'is empty; there is nothing to compare a prediction with'
                raise self.fault(f'{where}.caption', reason, self.captions_file)
        where, labels = f'{captions[0][0]}.labels', captions[0][1].get('labels')
        if not isinstance(labels, list):
            reason = f'must be the list of the phrases that have a mask, got {labels!r:.60}'
            raise self.fault(where, reason, self.captions_file)
        labels = [self._text(label, f'{where}[{j}]') for j, label in enumerate(labels)]
        if len(labels) != len(masks):
            raise self.fault(
                where,
                f'has {len(labels)} phrases, but {self.ann_file} has {len(masks)} masks of '
                f'image_id {image_id}; they belong together in their order. Give the two files of '
                'the same split, or mend the entry',
                self.captions_file,
            )
        answer, order = tag_labels(references[0], labels)
        return dict(
            answer=answer,
            caption=references[0],
            references=references,
            phrases=[labels[i] for i in order],
            masks=[masks[i][1]['segmentation'] for i in order],
        )

    def _text(self, text: Any, where: str) -> str:
        if not isinstance(text, str):
            raise self.fault(where, f'must be a text, got {text!r:.60}', self.captions_file)
        refuse_own_tokens(text, self.captions_file, where)
        return text

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; there is always one turn."""
        info = self.get_data_info(index)
        meta = {key: info[key] for key in ('image_id', 'caption', 'references', 'phrases')}
        turn = dict(human=self.test_question, gpt=info['answer'])
        return self.canonical_record(info, info['number'], 'gcg', [turn], info['masks'], **meta)
