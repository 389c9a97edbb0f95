"""Readers of descriptions of marked regions: their base, and Osprey's detailed descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.files.annotation_files import image_fields
from pixelsail_mm.datasets.readers.regions import RegionTurns, draw_prompt_ids, region_prompts
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import NUM_PROMPTS, PROMPT_TOKENS

# Asked in evaluation by the authors' release.
TEST_QUESTION = (
    'Can you provide me with a detailed description of the region in the picture '
    'marked by <Prompt0>?'
)


class RegionDescriptionDataset(PixelDataset):
    """Base of the readers that describe marked regions, one turn per region.

    An item of :meth:`load_data_list` has ``img_path``, ``name`` (the end of its sample id) and
    ``regions``, a list of ``dict(mask=, texts=[str, ...])``; maybe ``height``, ``width`` and
    ``image_id``.

    Training: a number of regions is drawn uniformly from 1 to ``max_regions``, and so many regions
    (or all, if there are fewer) in random order; one text of each is drawn. ``num_turns`` of
    :meth:`record` fixes that number. Test mode: items have one region, marked as ``<Prompt0>``,
    and ``meta['references']`` holds its texts.

    Args:
        ann_file: The annotation file.
        max_regions: Most regions per training sample, 1 to 15.
        questions: Template list (name or strings) with ``<region>``.
        question_suffix: Appended to every question, in test mode too.
        absent_probability: See :class:`~pixelsail_mm.datasets.readers.regions.RegionTurns`.
        test_question: Question of test mode, with ``<Prompt0>``.
        **kwargs: See :class:`PixelDataset`.

    Raises:
        ValueError: ``max_regions`` is not in 1..15.
    """

    def __init__(
        self,
        ann_file: str,
        max_regions: int = 5,
        questions: str | Sequence[str] = 'region_questions',
        question_suffix: str = '',
        absent_probability: float = 0.05,
        test_question: str = TEST_QUESTION,
        **kwargs,
    ) -> None:
        if not 1 <= max_regions <= NUM_PROMPTS:
            raise ValueError(
                f'{type(self).__name__}: max_regions={max_regions} must be in '
                f'1..{NUM_PROMPTS}, the number of prompt tokens'
            )
        self.max_regions = max_regions
        self.turns = RegionTurns(questions, question_suffix, absent_probability)
        self.test_question = test_question
        super().__init__(ann_file=ann_file, **kwargs)

    def read_regions(self, objects: Any, texts: Sequence[Any], where: str) -> list[dict]:
        """Pair segmented objects with their texts.

        Args:
            objects: List of dicts with a ``segmentation``.
            texts: A text per object; regions with an empty one are counted and left out.
            where: Position of the objects in the file, e.g. ``'[3].annotation'``.

        Returns:
            list of ``dict(mask=, texts=[str])``, not empty.

        Raises:
            BadSampleError: Something is malformed, no region has a text, or in test mode one has
                none.
        """
        if not isinstance(objects, list) or len(objects) != len(texts):
            count = len(objects) if isinstance(objects, list) else type(objects).__name__
            raise self.fault(
                where, f'must be a list of {len(texts)} objects, one per description, got {count}'
            )
        regions = []
        for j, (item, text) in enumerate(zip(objects, texts)):
            if not isinstance(item, dict) or not item.get('segmentation'):
                raise self.fault(f'{where}[{j}]', 'has no segmentation')
            if not isinstance(text, str) or (self.test_mode and not text):
                raise self.fault(
                    f'{where}[{j}]',
                    f'needs a description, a text that is not empty, got {text!r:.60}',
                )
            if text:
                regions.append(dict(mask=item['segmentation'], texts=[text]))
        if not regions:
            raise self.fault(where, 'has no object with a description; remove the entry')
        if len(regions) < len(texts):
            self._skips.add('region without a description', len(texts) - len(regions))
        return regions

    def one_by_one(self, item: dict) -> list[dict]:
        """The items of test mode: one per region of ``item``."""
        return [
            dict(item, name=f'{item["name"]}_{j}', regions=[region])
            for j, region in enumerate(item['regions'])
        ]

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`; a turn about an absent prompt comes on top."""
        info = self.get_data_info(index)
        if self.test_mode:
            return self._test_record(info)
        regions = self.choose(info['regions'], num_turns, rng)
        ids = draw_prompt_ids(len(regions), rng)
        texts = [region['texts'][rng.integers(len(region['texts']))] for region in regions]
        prompts = region_prompts([region['mask'] for region in regions], ids)
        turns = self.turns.make(texts, ids, rng)
        return self.canonical_record(info, info['name'], 'region', turns, prompts=prompts)

    def choose(
        self, regions: list[dict], num_turns: int | None, rng: np.random.Generator
    ) -> list[dict]:
        """Draw the regions of a training sample (authors' release: shuffle, uniform number)."""
        order = rng.permutation(len(regions))
        count = min(num_turns or int(rng.integers(1, self.max_regions + 1)), NUM_PROMPTS)
        return [regions[i] for i in order[:count]]

    def _test_record(self, info: dict) -> Record:
        (region,) = info['regions']
        texts = region['texts']
        answer = f'{PROMPT_TOKENS[0]}: {texts[0]}' if texts else ''
        meta = {k: info[k] for k in ('image_id', 'ann_id') if k in info}
        if texts:
            meta['references'] = texts
        turn = dict(human=self.test_question + self.turns.question_suffix, gpt=answer)
        prompts = region_prompts([region['mask']], [0])
        return self.canonical_record(info, info['name'], 'region', [turn], prompts=prompts, **meta)


def remove_labels(description: str) -> str:
    """Delete the region label of a description, e.g. of ``'<region1>: a dog'``.

    Of the parts between colons those with both ``<`` and ``>`` go (authors' release); the other
    colons stay.
    """
    parts = [part for part in description.split(':') if not ('<' in part and '>' in part)]
    return ':'.join(parts).strip()


@DATASETS.register_module()
class OspreyDescriptionDataset(RegionDescriptionDataset):
    """Detailed descriptions of regions, such as ``osprey_detail_description.json``.

    Keys read: ``file_name``, ``annotation[].segmentation`` (polygons or RLE), ``description[]``
    (one per object); optional ``height`` and ``width``. Region labels in the descriptions are
    deleted, see :func:`remove_labels`.

    Args:
        ann_file: The JSON list.
        data_prefix: Image folders, the first one that has the image is used; not all must exist.
            Photos of COCO are found under the names of all its releases.
        **kwargs: See :class:`RegionDescriptionDataset`.
    """

    searches_folders = True

    def load_data_list(self) -> Iterator[dict]:
        """Items with all regions of an image, or single regions in test mode."""
        keys = 'file_name', 'annotation', 'description'
        for i, item in self.parse_list(self._parse, keys):
            item['name'] = str(i)
            yield from self.one_by_one(item) if self.test_mode else [item]

    def _parse(self, entry: dict, where: str) -> dict:
        texts = entry['description']
        if not isinstance(texts, list):
            raise self.fault(f'{where}.description', f'must be a list, got {type(texts).__name__}')
        texts = [remove_labels(text) if isinstance(text, str) else text for text in texts]
        regions = self.read_regions(entry['annotation'], texts, f'{where}.annotation')
        return dict(image_fields(entry, 'file_name', '', self.ann_file, where), regions=regions)

    def image_of(self, info: dict) -> str:
        """Path of the image of what :meth:`load_data_list` gives."""
        return self.find_image(info['img_path'])
