"""Our own format: everything that Pixel-SAIL is trained on, in one file."""

from __future__ import annotations

import os
import os.path as osp
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn

import numpy as np

from pixelsail_mm.datasets.base import PixelDataset, select_turns
from pixelsail_mm.datasets.files.annotation_files import iter_json
from pixelsail_mm.datasets.files.json_schema import Schema
from pixelsail_mm.datasets.readers.regions import draw_prompt_ids, named_prompts, rename_prompts
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.errors import AnnotationError, BadSampleError
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import SEG_TOKEN

_EVALUATION_KEYS = ('choices', 'correct', 'references', 'expression', 'no_target')
_LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'


@cache
def _entry_schema() -> Schema:
    return Schema('pixel_chat.schema.json', 'entry')


@DATASETS.register_module()
class PixelChatDataset(PixelDataset):
    """Conversations with masks and visual prompts, for data of one's own.

    The file is a JSON list or, named ``*.jsonl``, one entry per line; its keys are defined in
    ``schemas/pixel_chat.schema.json`` and explained in ``docs/custom_data.md``. Entries that the
    schema does not allow are counted and left out.

    Training: an item is an entry. Test mode: an item is one turn, asked after the earlier turns of
    its entry and their answers; masks and the evaluation keys are those of the turn.

    Args:
        ann_file: The file.
        data_prefix: ``dict(img_path=folder of the images, mask_path=folder of masks that are
            files)``, both ``data_root`` by default.
        max_turns: Most turns per training sample; None keeps all.
        shuffle_turns: The turns of an entry do not depend on each other: the kept ones are drawn
            in any order in training and asked without each other in test mode.
        random_prompt_ids: Give the prompts random ids in training, so that every ``<PromptK>`` is
            learned; test mode keeps those of the file.
        **kwargs: See :class:`PixelDataset`.
    """

    def __init__(
        self,
        ann_file: str,
        data_prefix: Mapping[str, str] | None = None,
        max_turns: int | None = None,
        shuffle_turns: bool = False,
        random_prompt_ids: bool = True,
        **kwargs,
    ) -> None:
        self.max_turns = max_turns
        self.shuffle_turns = shuffle_turns
        self.random_prompt_ids = random_prompt_ids
        folders = {'img_path': '', 'mask_path': '', **(data_prefix or {})}
        super().__init__(ann_file=ann_file, data_prefix=folders, **kwargs)

    def load_data_list(self) -> Iterator[dict]:
        """Entries with the masks of each turn, or turns with those before them in test mode."""
        taken: dict[str, str] = {}
        folders = self.data_prefix['img_path'], self.data_prefix['mask_path']
        for i, entry in enumerate(iter_json(self.ann_file, 'ann_file')):
            at = _Place(self.ann_file, f'[{i}]')
            item = self.usable(_make_item, entry, i, at, *folders)
            if item is None:
                continue
            if not self.test_mode:
                yield item
                continue
            _check_id(item['id'], at, taken)
            for t in range(len(item['turns'])):
                first = t if self.shuffle_turns else 0
                yield dict(item, turns=item['turns'][first : t + 1], id=f'{item["id"]}/{t}')

    def record(self, index: int, rng: np.random.Generator, num_turns: int | None = None) -> Record:
        """See :meth:`SampleSource.record`."""
        info = self.get_data_info(index)
        turns, ids = info['turns'], info['prompt_ids']
        names = dict(zip(ids, ids))
        if not self.test_mode:
            turns = select_turns(turns, num_turns or self.max_turns, self.shuffle_turns, rng)
            if self.random_prompt_ids:
                names = dict(zip(ids, draw_prompt_ids(len(ids), rng)))
        asked = turns[-1:] if self.test_mode else turns
        record = self.canonical_record(
            info,
            info['id'],
            info['meta'].get('task', _task(info, asked)),
            [rename_prompts(turn, names) for turn in turns],
            [mask for turn in asked for mask in turn['masks']],
            [dict(prompt, id=names[prompt['id']]) for prompt in info['prompts']],
        )
        about = asked[-1]['about'] if self.test_mode else {}
        about = {'answer' if key == 'correct' else key: about[key] for key in about}
        record['meta'] = {**info['meta'], **record['meta'], **about}
        if 'exif' in info:
            record['exif'] = info['exif']
        return record


def _task(info: dict, asked: Sequence[dict]) -> str:
    """Kind of task by which metrics choose their samples."""
    if any('choices' in turn['about'] for turn in asked):
        return 'mcq'
    if any(turn['masks'] for turn in asked):
        return 'refseg'
    return 'region' if info['prompts'] else 'vqa'


def validate_pixel_chat(
    path: str | os.PathLike,
    img_path: str | os.PathLike | None = None,
    mask_path: str | os.PathLike = '',
) -> list[str]:
    """Check a file for :class:`PixelChatDataset`.

    Args:
        path: The file.
        img_path: Folder of the images. If given, images, masks and prompts are decoded as well,
            as in training; this takes as long as reading all images.
        mask_path: Folder of masks that are files.

    Returns:
        One message per faulty entry, the first fault of each; empty if all is well. Text that is
        not JSON ends the check.
    """
    path, number, problems, taken = os.fspath(path), -1, [], {}
    try:
        for number, entry in enumerate(iter_json(path, 'ann_file')):
            at = _Place(path, f'[{number}]')
            try:
                item = _make_item(entry, number, at, os.fspath(img_path or ''), mask_path)
                _check_id(item['id'], at, taken)
                if img_path is not None:
                    _decode(item, at)
            except BadSampleError as error:
                problems.append(str(error))
    except AnnotationError as error:
        return [*problems, str(error)]
    return problems if number >= 0 else [f'{path}: holds no entry']


def _decode(item: dict, at: _Place) -> None:
    """Read the image of an item and all that is drawn on it."""
    from pixelsail_mm.datasets.transforms import LoadImage, LoadMasks, LoadVisualPrompts

    results = {**item, 'masks': [mask for turn in item['turns'] for mask in turn['masks']]}
    try:
        for transform in (LoadImage(), LoadMasks(), LoadVisualPrompts()):
            results = transform(results)
    except BadSampleError as error:
        # Absent prompts, which the transform does not see, count in the file.
        order = [item['prompt_ids'].index(prompt['id']) for prompt in item['prompts']]
        key = re.sub(r'^prompts\[(\d+)', lambda m: f'prompts[{order[int(m[1])]}', error.key)
        at(f'.{key}').fail(f'{error.reason} (file {error.file})')


def _make_item(entry: Any, number: int, at: _Place, img_path: str, mask_path: Any) -> dict:
    """Item of an entry: checked, masks beside their turns, paths with their folders."""
    _entry_schema().check(entry, at.file, at.key)
    check_links(entry, at)
    masks = iter([_locate(mask, mask_path) for mask in entry.get('masks', ())])
    turns = [
        dict(
            human=turn['question'],
            gpt=turn['answer'],
            masks=[next(masks) for _ in range(turn['answer'].count(SEG_TOKEN))],
            about={k: turn[k] for k in _EVALUATION_KEYS if k in turn},
        )
        for turn in entry['turns']
    ]
    prompts = [dict(prompt, id=int(prompt['id'])) for prompt in entry.get('prompts', ())]
    marking = [
        dict(prompt, mask=_locate(prompt['mask'], mask_path)) if 'mask' in prompt else prompt
        for prompt in prompts
        if 'absent' not in prompt
    ]
    return dict(
        id=str(entry.get('id', number)),
        turns=turns,
        prompts=marking,
        prompt_ids=[prompt['id'] for prompt in prompts],
        meta=entry.get('meta', {}),
        img_path=osp.join(img_path, entry['image']) if 'image' in entry else None,
        **{side: int(entry[side]) for side in ('height', 'width') if side in entry},
        **{key: entry[key] for key in ('exif',) if key in entry},
    )


def _locate(mask: Any, folder: str) -> Any:
    if isinstance(mask, dict) and 'union' in mask:
        return dict(union=[_locate(part, folder) for part in mask['union']])
    if isinstance(mask, dict) and 'png' in mask:
        return dict(mask, png=osp.join(folder, mask['png']))
    return mask


class _Place(NamedTuple):
    """Where a value stands, to name it when it is at fault."""

    file: str
    key: str

    def __call__(self, step: str) -> _Place:
        return _Place(self.file, self.key + step)

    def fail(self, reason: str) -> NoReturn:
        raise BadSampleError(self.file, self.key, reason)


def check_links(entry: dict, at: _Place) -> None:
    """Check what a schema cannot say: that the parts of a checked entry fit each other."""
    masks, prompts = entry.get('masks', []), entry.get('prompts', [])
    wanted = sum(turn['answer'].count(SEG_TOKEN) for turn in entry['turns'])
    if wanted != len(masks):
        at('.masks').fail(
            f'{len(masks)} masks for {wanted} {SEG_TOKEN} in the answers; give one '
            f'mask per {SEG_TOKEN}, in the same order'
        )
    ids = [prompt['id'] for prompt in prompts]
    for i, k in enumerate(ids):
        if k in ids[:i]:
            at(f'.prompts[{i}].id').fail(f'prompt id {k} is used twice; give every prompt its own')
    for i, turn in enumerate(entry['turns']):
        for k in named_prompts([dict(human=turn['question'], gpt=turn['answer'])]):
            if k not in ids:
                at(f'.turns[{i}]').fail(
                    f'names <Prompt{k}>, but the prompts have the ids {ids}; '
                    f'add it, as {{"id": {k}, "absent": true}} if it is to '
                    'mark nothing'
                )
        if 'correct' in turn and _LETTERS.index(turn['correct']) >= len(turn['choices']):
            at(f'.turns[{i}].correct').fail(
                f'{turn["correct"]} is not the letter of one of the {len(turn["choices"])} choices'
            )
    for i, prompt in enumerate(prompts):
        x1, y1, x2, y2 = prompt.get('box', (0, 0, 1, 1))
        if x2 <= x1 or y2 <= y1:
            at(f'.prompts[{i}].box').fail(
                f'box {prompt["box"]} is empty; give [x1, y1, x2, y2] with x1 < x2 and y1 < y2'
            )
        _check_polygons(prompt.get('mask'), at(f'.prompts[{i}].mask'))
    for i, mask in enumerate(masks):
        _check_polygons(mask, at(f'.masks[{i}]'))


def _check_polygons(mask: Any, at: _Place) -> None:
    if isinstance(mask, dict) and 'union' in mask:
        for i, part in enumerate(mask['union']):
            _check_polygons(part, at(f'.union[{i}]'))
    elif isinstance(mask, list):
        for i, polygon in enumerate(mask):
            if len(polygon) % 2:
                at(f'[{i}]').fail(f'a polygon of {len(polygon)} numbers; a point has two')


def _check_id(name: str, at: _Place, taken: dict[str, str]) -> None:
    if name in taken:
        at('.id').fail(f'id {name!r} is that of {taken[name]} as well; give every entry its own')
    taken[name] = at.key
