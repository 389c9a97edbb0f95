"""Reader of visual-prompt conversations in the Osprey format."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset, select_turns
from pixelsail_mm.datasets.files.annotation_files import image_fields
from pixelsail_mm.datasets.readers.conversations import parse_turns
from pixelsail_mm.datasets.readers.regions import draw_prompt_ids
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import NUM_PROMPTS

# Eight spellings: with or without angle brackets, region, Region, misspelt regon, Regon. Numbers
# are taken whole, so region10 never becomes region1 followed by a 0 (a fault of the release).
_REGION = re.compile(r'<[Rr]egi?on(\d+)>|(?<!\w)[Rr]egi?on(\d+)(?!\w)')
# The numbers of the same spellings. It begins with letters that the search can look for and looks
# back from there, which takes a third of the time.
_NUMBER = re.compile(r'eg(?<=[Rr]eg)(?<!\w[Rr]eg)i?on(\d+)(?!\w)')
_CHOICE = re.compile(
    r'(?<!\w)\(?([A-H])[.)]\s*(.+?)(?=\s+\(?[A-H][.)]\s|\s+Answer\b|\s*$)', re.DOTALL
)


def parse_choices(question: str) -> list[str]:
    """Options of a question such as ``'What is it? A. red B. blue Answer with ...'``.

    Returns:
        Options in the order of their letters; empty if the letters are not A, B, ... in order.
    """
    found = _CHOICE.findall(question)
    letters = ''.join(letter for letter, _ in found)
    return [text.strip() for _, text in found] if 'ABCDEFGH'.startswith(letters) else []


@DATASETS.register_module()
class OspreyDataset(PixelDataset):
    """Conversations about marked regions, such as ``osprey_conversation.json``.

    Keys read: ``file_name``, ``height``, ``width``, ``annotation[].segmentation`` (polygons or
    RLE) and ``conversations``; optional ``choices``, ``answer`` and ``about`` (the type) of
    multiple-choice questions (else the options are read from the question in test mode). Region i
    of the text (from 1) becomes ``<PromptK>``: K is a random permutation in training and i - 1 in
    test mode. Entries with more than 15 or without objects are counted and left out.

    Args:
        ann_file: The JSON list.
        data_prefix: Image folders, the first one that has the image is used; not all must exist.
            Photos of COCO are found under the names of all its releases.
        max_turns: Most turns per sample; None keeps all.
        shuffle_turns: Draw the kept turns in any order in training, for files whose turns do not
            depend on each other.
        max_regions: Most regions that the turns of a training sample are about; turns about other
            regions are left out. None sets no limit.
        only_mentioned: Mark only the regions that the kept turns mention; by default all regions
            of the entry are marked, as in the release. Marking what nobody asks about tells a
            model that also learns to segment where the objects are.
        question_suffix: Appended to every question, e.g. for the short-form file.
        task: Value of ``meta['task']``; by default ``'mcq'`` for items with options, otherwise
            ``'region'``.
        **kwargs: See :class:`PixelDataset`.
    """

    searches_folders = True

    def __init__(
        self,
        ann_file: str,
        max_turns: int | None = None,
        shuffle_turns: bool = False,
        max_regions: int | None = None,
        only_mentioned: bool = False,
        question_suffix: str = '',
        task: str | None = None,
        **kwargs,
    ) -> None:
        self.max_turns = max_turns
        self.shuffle_turns = shuffle_turns
        self.max_regions = max_regions
        self.only_mentioned = only_mentioned
        self.question_suffix = question_suffix
        self.task = task
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Items with paired turns and the regions' masks."""
        keys = 'file_name', 'annotation', 'conversations'
        for i, item in self.parse_list(self._parse, keys):
            yield dict(item, number=i)

    def _parse(self, entry: dict, where: str) -> dict:
        if not isinstance(entry['annotation'], list):
            raise self.fault(
                f'{where}.annotation', f'must be a list, got {entry["annotation"]!r:.60}'
            )
        count = len(entry['annotation'])
        if not 1 <= count <= NUM_PROMPTS:
            raise self.fault(
                f'{where}.annotation', f'{count} objects; 1 to {NUM_PROMPTS} can be marked'
            )
        for j, item in enumerate(entry['annotation']):
            if not isinstance(item, dict) or not item.get('segmentation'):
                raise self.fault(f'{where}.annotation[{j}]', 'has no segmentation')
        turns = parse_turns(entry['conversations'], self.ann_file, where)
        for number in _mentioned(turns):
            if not 1 <= number <= count:
                raise self.fault(
                    f'{where}.conversations',
                    f'region {number} is mentioned, but there are {count} objects',
                )
        return dict(
            # The folder is found later, where the image lies.
            image_fields(entry, 'file_name', '', self.ann_file, where),
            masks=[item['segmentation'] for item in entry['annotation']],
            turns=turns,
            **{key: entry.get(key) for key in ('choices', 'answer', 'about')},
        )

    def image_of(self, info: dict) -> str:
        """Path of an item's image."""
        return self.find_image(info['img_path'])

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        ids = draw_prompt_ids(len(info['masks']), None if self.test_mode else rng)
        shuffle = self.shuffle_turns and not self.test_mode
        turns = select_turns(
            self._allowed_turns(info, rng), num_turns or self.max_turns, shuffle, rng
        )
        used = range(1, len(ids) + 1)
        if self.only_mentioned:
            used = sorted(_mentioned(turns))
        turns = [
            dict(
                human=_name_prompts(turn['human'], ids) + self.question_suffix,
                gpt=_name_prompts(turn['gpt'], ids),
            )
            for turn in turns
        ]
        prompts = [dict(id=ids[number - 1], mask=info['masks'][number - 1]) for number in used]
        meta = self._meta(info, turns)
        return self.canonical_record(
            info, info['number'], conversation=turns, prompts=prompts, **meta
        )

    def _allowed_turns(self, info: dict, rng: np.random.Generator) -> list[dict]:
        """Turns about at most ``max_regions`` regions, drawn anew for every sample."""
        if self.max_regions is None or self.test_mode:
            return info['turns']
        drawn = rng.permutation(sorted(_mentioned(info['turns'])))[: self.max_regions]
        allowed = set(drawn.tolist())
        return [turn for turn in info['turns'] if _mentioned([turn]) <= allowed]

    def _meta(self, info: dict, turns: list[dict]) -> dict:
        meta, choices = {}, info['choices']
        if self.test_mode and choices is None:
            choices = parse_choices(turns[-1]['human'])
        if choices and self.test_mode:
            meta.update(choices=choices, answer=info['answer'] or turns[-1]['gpt'])
            if info['about'] is not None:
                meta['question_type'] = info['about']
        meta['task'] = self.task or ('mcq' if choices else 'region')
        return meta


def _mentioned(turns: list[dict]) -> set[int]:
    return {
        int(number) for turn in turns for text in turn.values() for number in _NUMBER.findall(text)
    }


def _name_prompts(text: str, ids: list[int]) -> str:
    return _REGION.sub(
        lambda match: f'<Prompt{ids[int(match.group(1) or match.group(2)) - 1]}>', text
    )
