"""Reader of region captions on SA-1B-like images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pixelsail_mm.datasets.readers.osprey_description import RegionDescriptionDataset
from pixelsail_mm.registry import DATASETS

QUESTION_SUFFIX = ' Please provide as detailed as possible.'

# The captions were written from pictures in which the region had a yellow outline.
_DRAWN = (
    r'(?:(?:a|an|the|its|their|this)\s+)?(?:(?:bright|thin|thick|bold|clear|visible|distinct)'
    r'\s+)*yellow(?:-colou?red)?\s+(?:edge|contour|outline)s?\b'
    r'(?:\s+(?:around|highlighting|surrounding|marking)\s+(?:it|them|the\s+\w+))?'
)
_BY = r'(?:by|with|in|within|inside|using)'
_PICTURE = r'(?:\s+in\s+(?:the|this)\s+(?:image|picture|photo))'
_MARKED = (
    rf'(?:(?:highlighted|outlined|marked|surrounded|enclosed|encircled|indicated)\s+{_BY}\s+'
    rf'{_DRAWN}{_PICTURE}?|(?:highlighted|outlined)\s+in\s+(?:bright\s+)?yellow\b'
    rf'|highlighted(?:{_PICTURE}|(?=\s*(?:[.,;:!?]|$))))'
)
_IS = r'(?:is|are|was|were|has\s+been|have\s+been)\s+'
_CLAUSE = rf'(?:(?:which|that|who)\s+)?(?:{_IS})?{_MARKED}'
_MENTIONS = [
    (re.compile(pattern, re.IGNORECASE), rest)
    for pattern, rest in (
        # A predicate in front of another one.
        (rf'\b(?:{_IS}{_MARKED}|(?:has|have)\s+{_DRAWN})\s+and\s+', ''),
        # Between commas both go, otherwise the comma in front.
        (rf',\s*{_CLAUSE}\s*,', ''),
        (rf',?\s*\b{_CLAUSE}', ''),
        (rf',?\s*\b(?:(?:and\s+)?(?:has|have)|{_BY})\s+{_DRAWN}', ''),
        (r'\b(a)\s+highlighted\s+(?=[aeiou])', r'\1n '),
        (r'\bhighlighted\b(?!\s+(?:by|with|against|in)\b)\s*', ''),
        # Whole sentences about the mark, then what is left.
        (rf'(?:^|(?<=[.!?]\s)){_DRAWN}[^.!?]*[.!?]*', ''),
        (rf'\b{_DRAWN}', ''),
    )
]
_TRACES = [
    (re.compile(pattern, re.IGNORECASE), rest)
    for pattern, rest in (
        (
            r'(?:^|(?<=[.!?]\s))\s*(?:it|this|the\s+(?:object|region|area|item|part))\s*(?:[.!?]+|$)',
            '',
        ),
        (r'(?<=[.!?])\s*,\s*', ' '),
        (r'\s+(?=[.,;:!?])|(?<=\s)\s+|^[\s.,;:!?]+|\s+$', ''),
    )
]


def clean_caption(caption: str) -> str:
    """Delete what a caption says about the drawn mark instead of the region.

    That is highlighting, and a yellow edge, contour or outline (authors' release; the patterns
    are ours). A caption without such a mention stays as it is, up to blanks around it.

    Args:
        caption: As the annotation has it.

    Returns:
        The rest of the caption; may be empty.
    """
    text = _replace(caption, _MENTIONS)
    if text == caption:
        return caption.strip()
    text = _replace(text, _TRACES)
    return text[:1].upper() + text[1:] if caption.lstrip()[:1].isupper() else text


def _replace(text: str, patterns: list[tuple[re.Pattern, str]]) -> str:
    for pattern, rest in patterns:
        text = pattern.sub(rest, text)
    return text


@DATASETS.register_module()
class SAMRegionDataset(RegionDescriptionDataset):
    """Captions of regions, a JSON list of ``{image_name, object_annotations}``.

    Keys read of an object: ``segmentation`` (RLE) and ``caption``, see :func:`clean_caption`;
    optional ``height`` and ``width`` of the image. The objects of an image are shuffled once, by
    ``seed``, and cut into chunks of ``max_regions``; each chunk is an item. Test mode keeps the
    file's order and has one region per item, which is how PerBench's detailed captions, files of
    the same layout, are asked for.

    Args:
        ann_file: The JSON list.
        question_suffix: Appended to every question, in test mode too.
        **kwargs: See :class:`RegionDescriptionDataset`.
    """

    def __init__(self, ann_file: str, question_suffix: str = QUESTION_SUFFIX, **kwargs) -> None:
        super().__init__(ann_file=ann_file, question_suffix=question_suffix, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items with a chunk of an image's regions, or single regions in test mode."""
        for i, item in self.parse_list(self._parse, ('image_name', 'object_annotations')):
            item['name'] = str(i)
            yield from self.one_by_one(item) if self.test_mode else self._chunks(item, i)

    def _parse(self, entry: dict, where: str) -> dict:
        objects = entry['object_annotations']
        texts = [_caption(item) for item in objects] if isinstance(objects, list) else []
        regions = self.read_regions(objects, texts, f'{where}.object_annotations')
        return dict(self.image_fields(entry, 'image_name', where), regions=regions)

    def _chunks(self, item: dict, i: int) -> Iterator[dict]:
        regions = item['regions']
        # A generator per entry: what one holds does not change how others are cut.
        order = np.random.default_rng([self.seed, i]).permutation(len(regions))
        for start in range(0, len(regions), self.max_regions):
            chunk = [regions[j] for j in order[start : start + self.max_regions]]
            yield dict(item, name=f'{i}_{start // self.max_regions}', regions=chunk)

    def choose(
        self, regions: list[dict], num_turns: int | None, rng: np.random.Generator
    ) -> list[dict]:
        """All regions of the chunk, or its first ones."""
        return regions[:num_turns]


def _caption(item: Any) -> Any:
    caption = item.get('caption') if isinstance(item, dict) else None
    return clean_caption(caption) if isinstance(caption, str) else caption
