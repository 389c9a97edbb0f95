"""Readers of Pix2Cap: a description of every segment of COCO panoptic images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixelsail_mm.datasets.readers.coco_panoptic import ClassTable, PanopticDataset, segment_mask
from pixelsail_mm.datasets.readers.regions import RegionTurns, draw_prompt_ids, region_prompts
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import NUM_PROMPTS

# The authors' release ignores descriptions of up to so many characters.
_TOO_SHORT = 5


class Pix2CapDataset(PanopticDataset):
    """Base of the readers of ``pix2cap_coco_train.json``.

    Further key read: ``segments_info[description]``. Segments whose description has at most five
    characters, blanks around it not counted, or is missing, are left out. The PNGs are COCO's, so
    ``data_prefix`` needs ``seg_map_path``.

    Args:
        ann_file: The JSON file.
        **kwargs: See :class:`PanopticDataset`.
    """

    def __init__(self, ann_file: str = 'pix2cap_coco_train.json', **kwargs) -> None:
        super().__init__(ann_file=ann_file, **kwargs)

    def parse_segment(self, segment: dict, where: str, classes: ClassTable) -> dict | None:
        """See :meth:`PanopticDataset.parse_segment`."""
        description = segment.get('description') or ''
        if not isinstance(description, str):
            raise self.fault(
                f'{where}.description',
                f'must be a text, got {description!r:.60}; correct or remove it',
            )
        description = description.strip()
        return dict(description=description) if len(description) > _TOO_SHORT else None


@DATASETS.register_module()
class Pix2CapSegDataset(Pix2CapDataset):
    """Segmentation by a description.

    Training: the described segments are shuffled and the first ``num_turns`` make a turn each.
    Test mode: an item is one segment.

    Args:
        ann_file: The JSON file.
        questions: Template list (name or strings) with ``{x}`` for the description; test mode asks
            the first.
        answers: Template list (name or strings) with one ``[SEG]`` each; test mode has the first.
        **kwargs: See :class:`PanopticDataset`.
    """

    def __init__(
        self,
        ann_file: str = 'pix2cap_coco_train.json',
        questions: str | Sequence[str] = 'pix2cap_questions',
        answers: str | Sequence[str] = 'segmentation_answers',
        **kwargs,
    ) -> None:
        self.questions = load_templates(questions)
        self.answers = load_templates(answers)
        super().__init__(ann_file=ann_file, **kwargs)

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        segments = info['segments']
        if not self.test_mode:
            order = rng.permutation(len(segments))[: num_turns or self.num_turns]
            segments = [segments[i] for i in order]
        turns = []
        for segment in segments:
            question, answer = self.questions[0], self.answers[0]
            if not self.test_mode:
                question = self.questions[rng.integers(len(self.questions))]
                answer = self.answers[rng.integers(len(self.answers))]
            turns.append(dict(human=question.replace('{x}', segment['description']), gpt=answer))
        masks = [segment_mask(info, segment) for segment in segments]
        meta = dict(segment_id=segments[0]['id'], expression=segments[0]['description'])
        return self.panoptic_record(info, 'refseg', turns, masks, **meta)


@DATASETS.register_module()
class Pix2CapRegionDataset(Pix2CapDataset):
    """Description of marked segments.

    Training: the described segments are shuffled and the first n are marked and asked for, n
    uniform from 1 to ``num_turns`` (all of them if there are fewer). Test mode: an item is one
    segment, marked as ``<Prompt0>``, and ``meta['references']`` holds its description.

    Args:
        ann_file: The JSON file.
        questions: Template list (name or strings) with ``<region>``; test mode asks the first.
        question_suffix: Appended to every question.
        absent_probability: See :class:`~pixelsail_mm.datasets.readers.regions.RegionTurns`.
        **kwargs: See :class:`PanopticDataset`.
    """

    def __init__(
        self,
        ann_file: str = 'pix2cap_coco_train.json',
        questions: str | Sequence[str] = 'region_questions',
        question_suffix: str = '',
        absent_probability: float = 0.05,
        **kwargs,
    ) -> None:
        test_mode = kwargs.get('test_mode', False)
        self.regions = RegionTurns(
            load_templates(questions)[: 1 if test_mode else None],
            question_suffix,
            0 if test_mode else absent_probability,
        )
        super().__init__(ann_file=ann_file, **kwargs)

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        segments = info['segments']
        if not self.test_mode:
            count = min(num_turns or int(rng.integers(1, self.num_turns + 1)), NUM_PROMPTS)
            segments = [segments[i] for i in rng.permutation(len(segments))[:count]]
        ids = draw_prompt_ids(len(segments), None if self.test_mode else rng)
        turns = self.regions.make([segment['description'] for segment in segments], ids, rng)
        masks = [segment_mask(info, segment) for segment in segments]
        prompts = region_prompts(masks, ids)
        meta = dict(segment_id=segments[0]['id'], references=[segments[0]['description']])
        return self.panoptic_record(info, 'region', turns, prompts=prompts, **meta)
