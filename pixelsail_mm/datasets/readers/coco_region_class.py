"""Reader of classification of marked COCO segments among candidate names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixelsail_mm.datasets.readers.coco_panoptic import (
    COCOSegmentsDataset,
    load_coco_panoptic_names,
    segment_mask,
)
from pixelsail_mm.datasets.readers.regions import (
    REGION,
    RegionTurns,
    draw_prompt_ids,
    region_prompts,
)
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import NUM_PROMPTS, PROMPT_TOKENS

# Exact strings of the authors' release.
CANDIDATES = ' The candidate categories: {x}.'
OTHERS = 'others'


@DATASETS.register_module()
class COCORegionClassDataset(COCOSegmentsDataset):
    """Classes of marked segments, chosen from candidates that every question lists.

    The rules are the release's: candidates are drawn anew for every question, and ``others`` is
    the last one. With ``others_probability`` the true name is removed if it was drawn and the
    answer is ``<PromptK>: others.``; otherwise the true name is added if it was not drawn, the
    list is then shuffled again, and the answer is ``<PromptK>: name`` without full stop. Questions
    about absent prompts list drawn candidates too.

    Training: the segments are shuffled and the first ``num_turns`` are marked and asked for. Test
    mode: an item is one segment, marked as ``<Prompt0>``, with all names as candidates in the
    given order.

    Args:
        ann_file: The panoptic JSON file.
        questions: Template list (name or strings) with ``<region>``; test mode asks the first.
        names: Names that candidates are drawn from; the 133 of COCO panoptic by default.
        num_candidates: How many are drawn.
        others_probability: See above.
        absent_probability: See :class:`~pixelsail_mm.datasets.readers.regions.RegionTurns`.
        **kwargs: See :class:`COCOSegmentsDataset` and
            :class:`~pixelsail_mm.datasets.readers.coco_panoptic.PanopticDataset`.
    """

    def __init__(
        self,
        ann_file: str = 'panoptic_train2017.json',
        questions: str | Sequence[str] = 'region_class_questions',
        names: Sequence[str] | None = None,
        num_candidates: int = 10,
        others_probability: float = 0.05,
        absent_probability: float = 0.05,
        **kwargs,
    ) -> None:
        self.questions = load_templates(questions)
        self.names = list(load_coco_panoptic_names().values() if names is None else names)
        self.num_candidates = num_candidates
        self.others_probability = others_probability
        self.regions = RegionTurns(
            self.questions, absent_probability=0 if kwargs.get('test_mode') else absent_probability
        )
        super().__init__(ann_file=ann_file, **kwargs)

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        segments = info['segments']
        if not self.test_mode:
            most = min(num_turns or self.num_turns, NUM_PROMPTS)
            segments = [segments[i] for i in rng.permutation(len(segments))[:most]]
        ids = draw_prompt_ids(len(segments), None if self.test_mode else rng)
        lists, answers = {}, []
        for segment, k in zip(segments, ids):
            lists[PROMPT_TOKENS[k]], answer = self._candidates(segment['name'], rng)
            answers.append(answer)

        def ask(token: str) -> str:
            # The token of an absent prompt has no list yet.
            names = lists[token] if token in lists else self._draw_names(rng)
            return self._question(token, names, rng)

        turns = self.regions.make(answers, ids, rng, ask)
        masks = [segment_mask(info, segment) for segment in segments]
        first = segments[0]
        return self.panoptic_record(
            info,
            'region_class',
            turns,
            prompts=region_prompts(masks, ids),
            segment_id=first['id'],
            category_id=first['category_id'],
            class_name=first['name'],
            candidates=lists[PROMPT_TOKENS[ids[0]]],
        )

    def _candidates(self, name: str, rng: np.random.Generator) -> tuple[list[str], str]:
        """Candidates of a segment without ``others``, and the answer behind ``<PromptK>: ``."""
        if self.test_mode:
            return self.names + [name] * (name not in self.names), name
        drawn = self._draw_names(rng)
        if rng.random() < self.others_probability:
            return [candidate for candidate in drawn if candidate != name], f'{OTHERS}.'
        if name not in drawn:
            drawn.append(name)
            drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        return drawn, name

    def _draw_names(self, rng: np.random.Generator) -> list[str]:
        return [self.names[i] for i in rng.permutation(len(self.names))[: self.num_candidates]]

    def _question(self, token: str, names: list[str], rng: np.random.Generator) -> str:
        number = 0 if self.test_mode else rng.integers(len(self.questions))
        listed = CANDIDATES.replace('{x}', ', '.join([*names, OTHERS]))
        return self.questions[number].replace(REGION, token) + listed
