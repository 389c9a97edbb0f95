"""The four annotation formats of grounded captions; arguments are those of ``GCGDataset``."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pixelsail_mm.datasets.files.annotation_files import (
    iter_json_list,
    load_tables,
    require_keys,
    rows_by_image,
)
from pixelsail_mm.datasets.readers.gcg import OUTSIDE, GCGDataset, Span
from pixelsail_mm.errors import AnnotationError
from pixelsail_mm.registry import DATASETS

ELSEWHERE = 'phrase that does not stand at its token_positives (these are taken)'
_MIN_WORDS = 3
_MIN_SIDE = 32
# What may stand around captions and phrases.
_QUOTES = ' \t\n"'


@DATASETS.register_module()
class RefCOCOgGCGDataset(GCGDataset):
    """Grounded captions from RefCOCOg, such as ``RefCOCOg_GCG_train.json``.

    The file is a list of dicts with a single key, the image's id, and the value
    ``{img_file_name, caption, refs}``; a reference is ``{sentence, segmentation}``. Caption and
    sentences are lower-cased. A reference is kept if its sentence occurs in the caption, and
    belongs to the first place where it does. Only places between word borders count, so that
    "man" is not found in "woman". (The release looks for the sentence before it is lower-cased.)
    """

    def entries(self) -> Iterator[tuple[str, Any]]:
        """See :meth:`GCGDataset.entries`."""
        for i, entry in enumerate(iter_json_list(self.ann_file, 'ann_file')):
            if not isinstance(entry, dict) or len(entry) != 1:
                raise AnnotationError(
                    self.ann_file,
                    f'[{i}]',
                    "must be a dict with the image's id as its only key; is it the right file?",
                )
            ((image_id, content),) = entry.items()
            where = f'[{i}].{image_id}'
            require_keys(content, ('img_file_name', 'caption', 'refs'), self.ann_file, where)
            yield where, dict(content, image_id=image_id)

    def parse_entry(self, entry: dict, where: str) -> dict:
        """See :meth:`GCGDataset.parse_entry`."""
        fields = self.image_fields(entry, 'img_file_name', where)
        caption, refs = entry['caption'], entry['refs']
        if not isinstance(caption, str) or not isinstance(refs, list):
            raise self.fault(where, 'caption must be a text and refs a list')
        caption = caption.lower()
        spans = []
        for j, ref in enumerate(refs):
            if not isinstance(ref, dict) or not isinstance(ref.get('sentence'), str):
                raise self.fault(f'{where}.refs[{j}]', 'needs a text sentence')
            sentence = ref['sentence'].strip(_QUOTES).lower()
            found = re.search(rf'(?<!\w){re.escape(sentence)}(?!\w)', caption)
            if sentence and found:
                masks = [ref['segmentation']] if ref.get('segmentation') else []
                spans.append((*found.span(), masks))
            else:
                self._skips.add(OUTSIDE)
        return dict(fields, image_id=entry['image_id'], caption=caption, spans=spans)


@DATASETS.register_module()
class GranDfDataset(GCGDataset):
    """Grounded captions written by people for GranD, such as ``GranDf_HA_GCG_train.json``.

    The file is a list of ``{file_name, caption, groundings}``, and ``groundings`` maps a phrase to
    None (left out) or ``{token_positives: [start, end], rle_masks: [RLE, ...]}``. The masks of a
    phrase are joined. The image's id is its file name without folder and suffix.

    In captions with quotes around them the positions count with or without these, see
    :func:`settle_positions`.
    """

    def entries(self) -> Iterator[tuple[str, Any]]:
        """See :meth:`GCGDataset.entries`."""
        for i, entry in enumerate(iter_json_list(self.ann_file, 'ann_file')):
            require_keys(entry, ('file_name', 'caption', 'groundings'), self.ann_file, f'[{i}]')
            yield f'[{i}]', entry

    def parse_entry(self, entry: dict, where: str) -> dict:
        """See :meth:`GCGDataset.parse_entry`."""
        fields = self.image_fields(entry, 'file_name', where)
        groundings = entry['groundings']
        if not isinstance(groundings, dict):
            raise self.fault(
                f'{where}.groundings', f'must map phrases to masks, got {type(groundings).__name__}'
            )
        spans = {
            phrase: self._span(grounding, f'{where}.groundings.{phrase}')
            for phrase, grounding in groundings.items()
            if grounding is not None
        }
        if isinstance(entry['caption'], str):
            spans, elsewhere = settle_positions(entry['caption'], spans)
            if elsewhere:
                self._notes.add(ELSEWHERE, elsewhere)
        image_id = osp.splitext(osp.basename(entry['file_name']))[0]
        return dict(fields, image_id=image_id, caption=entry['caption'], spans=spans)

    def _span(self, grounding: Any, where: str) -> Span:
        if not isinstance(grounding, dict) or not isinstance(grounding.get('rle_masks'), list):
            raise self.fault(where, 'needs token_positives and a list rle_masks')
        positions = grounding.get('token_positives')
        return *self.positions(positions, f'{where}.token_positives'), grounding['rle_masks']


def settle_positions(caption: str, spans: Mapping[str, Span]) -> tuple[list[Span], int]:
    """Decide from the phrases how positions count in a caption with quotes around it.

    GLaMM and the authors count in ``caption.strip('"').strip()``, other loaders in the caption as
    the file has it, and the wrong one cuts words: ``A ma|n``. The count under which most phrases
    stand at their positions is taken; that of the file if there is no difference.

    Args:
        caption: As the file has it.
        spans: Phrase to its span.

    Returns:
        (spans that count in the caption as the file has it, number of those inside of it whose
        text is another than their phrase).
    """
    inside = {
        phrase: span for phrase, span in spans.items() if 0 <= span[0] < span[1] <= len(caption)
    }

    def standing(moved: int) -> int:
        return sum(
            caption[start + moved : end + moved].lower()
            in (phrase.lower(), phrase.strip(_QUOTES).lower())
            for phrase, (start, end, _) in inside.items()
        )

    # The second and third differ if blanks and quotes alternate.
    moves = [0, *(len(caption) - len(caption.lstrip(characters)) for characters in ('"', _QUOTES))]
    moved = max(moves, key=standing)
    settled = [
        (start + moved, end + moved, masks) if phrase in inside else (start, end, masks)
        for phrase, (start, end, masks) in spans.items()
    ]
    return settled, len(inside) - standing(moved)


@DATASETS.register_module()
class OpenPSGGCGDataset(GranDfDataset):
    """Grounded captions from OpenPSG, such as ``OpenPsgGCG_train.json``, as GranDf's."""


@DATASETS.register_module()
class FlickrGCGDataset(GCGDataset):
    """Grounded captions from Flickr30k, such as ``flickr_mergedGT_GCG_train.json`` (COCO style).

    Keys read: ``images[]`` of ``{id, file_name, height, width, caption}`` and ``annotations[]`` of
    ``{image_id, bbox, area, tokens_positive, sam_mask}``. The first pair of ``tokens_positive`` is
    the phrase. As in the release, images need a caption of three words and 32 pixels on the
    shorter side, and an annotation is left out if it has ``ignore``, no area, a box of less than a
    pixel, or a box outside of the image. What is left out is counted.
    """

    def entries(self) -> Iterator[tuple[str, Any]]:
        """See :meth:`GCGDataset.entries`."""
        content = load_tables(self.ann_file, 'ann_file', ('images', 'annotations'))
        annotations = rows_by_image(content['annotations'], (), self.ann_file)
        keys = 'id', 'file_name', 'height', 'width', 'caption'
        for i, image in enumerate(content['images']):
            require_keys(image, keys, self.ann_file, f'images[{i}]')
            yield f'images[{i}]', dict(image, annotations=annotations[str(image['id'])])

    def parse_entry(self, entry: dict, where: str) -> dict | None:
        """See :meth:`GCGDataset.parse_entry`."""
        fields = self.image_fields(entry, 'file_name', where)
        if not {'height', 'width'} <= fields.keys():
            raise self.fault(where, 'needs height and width in pixels')
        height, width, caption = fields['height'], fields['width'], entry['caption']
        if isinstance(caption, str) and len(caption.split()) < _MIN_WORDS:
            self._skips.add(f'caption of fewer than {_MIN_WORDS} words')
            return None
        if min(height, width) < _MIN_SIDE:
            self._skips.add(f'image of fewer than {_MIN_SIDE} pixels on a side')
            return None
        spans = [
            self._span(annotation, position)
            for position, annotation in entry['annotations']
            if self._is_usable(annotation, height, width, position)
        ]
        return dict(fields, image_id=entry['id'], caption=caption, spans=spans)

    def _is_usable(self, annotation: dict, height: int, width: int, where: str) -> bool:
        """Whether the filters of the release keep an annotation; others are counted."""
        if annotation.get('ignore'):
            self._skips.add('annotation marked as ignore')
            return False
        x, y, box_width, box_height = self.numbers(annotation.get('bbox'), 4, f'{where}.bbox')
        (area,) = self.numbers([annotation.get('area')], 1, f'{where}.area')
        columns = min(x + box_width, width) - max(x, 0)
        rows = min(y + box_height, height) - max(y, 0)
        if min(columns, rows, area) <= 0 or min(box_width, box_height) < 1:
            self._skips.add('annotation without area in the image')
            return False
        return True

    def _span(self, annotation: dict, where: str) -> Span:
        positions = annotation.get('tokens_positive')
        first = positions[0] if isinstance(positions, list) and positions else positions
        masks = [annotation['sam_mask']] if annotation.get('sam_mask') else []
        return *self.positions(first, f'{where}.tokens_positive'), masks
