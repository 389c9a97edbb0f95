"""Reader of questions about several targets at once, in the MUSE format."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset, select_turns
from pixelsail_mm.datasets.files.annotation_files import iter_json_list, require_keys, stated_size
from pixelsail_mm.datasets.files.image_keys import coco_names
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import clean_question, load_templates
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import SEG_TOKEN

QUESTION_SUFFIX = ' Please respond with segmentation mask.'
# Place of a mask in the answers of the file, and of all masks in our grouped answers.
SEG_FIELD = '{seg}'
SEGS_FIELD = '{segs}'
_FOLDERS = ('train2014', 'train2017', 'val2017')
# How often a target is called by its rephrased name, if it has one (authors' release).
_REPHRASED_SHARE = 0.9


def enumerate_words(words: Sequence[str]) -> str:
    """Join as in ``'a, b and c'``."""
    return ' and '.join([', '.join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


@DATASETS.register_module()
class MUSEDataset(PixelDataset):
    """MUSE: questions whose answers show one or several targets.

    Keys read: ``file_name`` (an image of train2014) or else ``coco_url`` (image and folder are its
    last two parts), ``height``, ``width``, ``ann_list`` (not empty), ``questions``, ``answers``
    (per question a list of targets with ``segmentation``, ``category_name`` and perhaps
    ``rephrased_name``) and perhaps ``text_answers``.

    A text answer is used with ``[SEG]`` for each ``{seg}``. Where there is none, the answer is made
    by one of two styles, at equal shares: a pattern per target, ``'A is [SEG]., B is [SEG]. and
    [SEG].'``; or one pattern for all of them, with their names in lower case. The name of a target
    is the rephrased one with probability 0.9 (all as in the authors' release).

    Training: an item is an entry with all its questions in their order. Test mode: an item is one
    question; names are the rephrased ones and answers have the first pattern per target. An entry
    without the key ``questions``, as the public file has some, is counted and left out (as in the
    authors' release). One with anything amiss, such as a text answer with more or fewer ``{seg}``
    than targets, is counted and left out in training, and raised in test mode.

    Args:
        ann_file: The JSON list, ``MUSE_train.json`` or, as in PixelLM, ``muse_train.json``.
        data_prefix: Folders of the images, by the keys ``train2014``, ``train2017``, ``val2017``;
            by default folders of these names. Not all must exist: a photo that is not in its own
            folder is looked for in the others, under the names of all releases of COCO.
        max_turns: Most questions per training sample, the first ones; None keeps all.
        answers: Template list (name or strings) of the patterns per target, with one ``[SEG]``
            and perhaps ``{x}`` for the name.
        group_answers: Template list (name or strings) of the patterns for all targets, with
            ``{x}`` for the names and ``{segs}`` for the ``[SEG]`` of all.
        **kwargs: See :class:`PixelDataset`.

    Raises:
        ValueError: A pattern does not hold its ``[SEG]`` or ``{segs}`` exactly once.
    """

    searches_folders = True

    def __init__(
        self,
        ann_file: str = 'MUSE_train.json',
        data_prefix: Mapping[str, str] | None = None,
        max_turns: int | None = None,
        answers: str | Sequence[str] = 'muse_answers',
        group_answers: str | Sequence[str] = 'muse_group_answers',
        **kwargs,
    ) -> None:
        self.max_turns = max_turns
        self.answers = load_templates(answers)
        self.group_answers = load_templates(group_answers)
        for field, patterns in ((SEG_TOKEN, self.answers), (SEGS_FIELD, self.group_answers)):
            faulty = [pattern for pattern in patterns if pattern.count(field) != 1]
            if faulty:
                raise ValueError(
                    f'MUSEDataset: a pattern must hold {field} exactly once, got {faulty}'
                )
        super().__init__(
            ann_file=ann_file,
            data_prefix=data_prefix or {name: name for name in _FOLDERS},
            **kwargs,
        )

    def load_data_list(self) -> Iterator[dict]:
        """Entries with all their turns, or single turns in test mode."""
        for i, entry in enumerate(iter_json_list(self.ann_file, 'ann_file')):
            require_keys(entry, (), self.ann_file, f'[{i}]')
            if 'questions' not in entry:
                self._skips.add('entry without questions')
                continue
            require_keys(entry, ('answers',), self.ann_file, f'[{i}]')
            item = self.usable(self._parse, entry, f'[{i}]')
            if item is None:
                continue
            if not self.test_mode:
                yield dict(item, sample=str(i))
                continue
            for j, turn in enumerate(item['turns']):
                yield dict(item, turns=[turn], sample=f'{i}_{j}')

    def _parse(self, entry: dict, where: str) -> dict:
        if not entry.get('ann_list'):
            raise self.fault(
                f'{where}.ann_list', 'is empty; an entry needs the annotations of its objects'
            )
        texts = entry.get('text_answers')
        if texts is None and isinstance(entry['questions'], list):
            texts = [None] * len(entry['questions'])
        columns = dict(questions=entry['questions'], answers=entry['answers'], text_answers=texts)
        for key, column in columns.items():
            if (
                not isinstance(column, list)
                or not column
                or (len(column) != len(columns['questions']))
            ):
                raise self.fault(
                    f'{where}.{key}', 'must be a list with one entry per question, at least one'
                )
        turns = [
            self._parse_turn(*row, f'{where}.{{}}[{j}]')
            for j, row in enumerate(zip(*columns.values()))
        ]
        return dict(
            stated_size(entry, self.ann_file, where),
            turns=turns,
            img_path=self._locate(entry, where),
        )

    def _locate(self, entry: dict, where: str) -> str:
        """Path of an entry's image."""
        key = 'file_name' if entry.get('file_name') else 'coco_url'
        place = entry.get(key)
        parts = place.split('/') if isinstance(place, str) else []
        folder, name = (
            ('train2014', place)
            if key == 'file_name'
            else ((parts[-2], parts[-1]) if len(parts) > 1 else ('', ''))
        )
        # A photo of COCO may lie in any folder.
        known = folder in self.data_prefix or (name and len(coco_names(name)) > 1)
        if not parts or not name or not known:
            raise self.fault(
                f'{where}.{key}',
                f'{place!r:.80} names no image '
                f'in one of the folders {sorted(self.data_prefix)}; add the '
                'folder to data_prefix',
            )
        return osp.join(self.data_prefix.get(folder, next(iter(self.data_prefix.values()))), name)

    def _parse_turn(self, question: Any, answers: Any, text: Any, where: str) -> dict:
        """Question, targets and perhaps the answer of one turn; ``where`` has room for a key."""
        asked = clean_question(question) if isinstance(question, str) else ''
        if not asked:
            raise self.fault(
                where.format('questions'), f'must be a text that is not empty, got {question!r:.60}'
            )
        if not isinstance(answers, list):
            raise self.fault(
                where.format('answers'), f'must be a list of targets, got {type(answers).__name__}'
            )
        targets = [
            self._parse_target(answer, not text, f'{where.format("answers")}[{k}]')
            for k, answer in enumerate(answers)
        ]
        if not text:
            if not targets:
                raise self.fault(where.format('answers'), 'neither a target nor a text answer')
            return dict(human=asked, gpt=None, targets=targets)
        if not isinstance(text, str):
            raise self.fault(
                where.format('text_answers'), f'must be a text, got {type(text).__name__}'
            )
        reply = text.replace(SEG_FIELD, SEG_TOKEN).strip()
        if reply.count(SEG_TOKEN) != len(targets):
            raise self.fault(
                where.format('text_answers'),
                f'{reply.count(SEG_TOKEN)} {SEG_FIELD} for {len(targets)} targets',
            )
        return dict(human=asked, gpt=reply, targets=targets)

    def _parse_target(self, answer: Any, named: bool, where: str) -> dict:
        """Mask and names of a target; names are only needed to make an answer."""
        if not isinstance(answer, dict) or not answer.get('segmentation'):
            raise self.fault(where, 'has no segmentation')
        target = dict(mask=answer['segmentation'])
        if named:
            names = [answer.get('category_name'), answer.get('rephrased_name')]
            names = names if names[1] else names[:1]
            if not all(
                isinstance(name, str) and name.strip() and SEG_TOKEN not in name for name in names
            ):
                raise self.fault(
                    where,
                    'needs a category_name (and perhaps a '
                    f'rephrased_name) that is a text without {SEG_TOKEN}, got '
                    f'{names!r:.80}',
                )
            target['names'] = [name.strip() for name in names]
        return target

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        chosen = select_turns(info['turns'], num_turns or self.max_turns, False, rng)
        turns = [
            dict(
                human=turn['human'] + QUESTION_SUFFIX,
                gpt=turn['gpt'] or self._make_answer(turn['targets'], rng),
            )
            for turn in chosen
        ]
        masks = [target['mask'] for turn in chosen for target in turn['targets']]
        return self.canonical_record(info, info['sample'], 'muse', turns, masks)

    def _make_answer(self, targets: list[dict], rng: np.random.Generator) -> str:
        """Answer from the names of the targets; nothing is drawn in test mode."""
        if self.test_mode:
            return enumerate_words(
                [self.answers[0].replace('{x}', target['names'][-1]) for target in targets]
            )
        names = [
            target['names'][-1] if rng.random() < _REPHRASED_SHARE else target['names'][0]
            for target in targets
        ]
        if rng.random() < 0.5:
            return enumerate_words(
                [
                    self.answers[rng.integers(len(self.answers))].replace('{x}', name)
                    for name in names
                ]
            )
        pattern = self.group_answers[rng.integers(len(self.group_answers))]
        segs = enumerate_words([SEG_TOKEN] * len(targets))
        # The names last: they are the file's and may hold anything.
        return pattern.replace(SEGS_FIELD, segs).replace('{x}', ', '.join(names).lower())
