"""ShapesWorld in our own format: ``pixel_chat_{split}.json`` and ``masks/``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.tokenization import NUM_PROMPTS, SEG_TOKEN
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject
from pixelsail_mm.worlds.shapes_world.presets import COLOURS, KINDS, SPLITS
from pixelsail_mm.worlds.shapes_world.questions import (
    DESCRIBE_QUESTIONS,
    LETTERS,
    MCQ_STEMS,
    TEXT_ONLY,
    article,
    format_choices,
    it_is,
)

SEGMENT_QUESTION = 'Please segment {x}.'
PROMPT_KINDS = ('mask', 'box', 'point', 'scribble')
_TEXT_ONLY_EVERY = 8
_PEN = 2


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write the format's files of all splits; see the package for the arguments.

    An entry is an image: turns that segment one object, several objects with a ``[SEG]`` each or
    in one mask, and nothing; turns about prompts of every kind and one that marks nothing; and a
    multiple-choice question. Every eighth image is followed by an entry without image. Masks come
    in all spellings in turn.
    """
    for split in SPLITS:
        entries: list[dict] = []
        for image in world:
            if image.split == split:
                entries.append(_Entry(image, out / 'masks', rng).make())
                if len(entries) % (_TEXT_ONLY_EVERY + 1) == _TEXT_ONLY_EVERY:
                    entries.append(_text_only(len(entries), rng))
        dump_json(entries, out / f'pixel_chat_{split}.json')


def _text_only(number: int, rng: np.random.Generator) -> dict:
    pairs = [TEXT_ONLY[i] for i in rng.choice(len(TEXT_ONLY), 2, replace=False)]
    return dict(
        id=f'text{number}',
        turns=[dict(question=question, answer=answer) for question, answer in pairs],
    )


class _Entry:
    """Writes what there is to say about one image.

    Args:
        image: The image.
        folder: Where masks that are files go.
        rng: Source of randomness.
    """

    def __init__(self, image: WorldImage, folder: Path, rng: np.random.Generator) -> None:
        self._image, self._folder, self._rng = image, folder, rng
        self._decoded = [
            decode_mask(
                item.segmentation,
                image.height,
                image.width,
                image.file_name,
                f'object {item.ann_id}',
            )
            for item in image.objects
        ]
        self._masks: list[Any] = []
        ids = rng.permutation(NUM_PROMPTS).tolist()
        self._ids, self._absent = ids[: len(image.objects)], ids[-1]

    def make(self) -> dict:
        """Give the entry."""
        turns = [
            *self._segment_objects(),
            *self._segment_groups(),
            self._segment_nothing(),
            *self._describe(),
            self._ask(),
        ]
        prompts = [self._prompt(i) for i in range(len(self._ids))]
        prompts.append(dict(id=self._absent, absent=True))
        return dict(
            id=Path(self._image.file_name).stem,
            image=self._image.file_name,
            height=self._image.height,
            width=self._image.width,
            turns=turns,
            masks=self._masks,
            prompts=prompts,
            meta=dict(num_objects=len(self._image.objects)),
        )

    def _segment_objects(self) -> Iterator[dict]:
        for i, item in enumerate(self._image.objects):
            if item.sentences:
                sentence = item.sentences[self._rng.integers(len(item.sentences))]
                self._masks.append(self._spell(i, item))
                yield dict(
                    question=SEGMENT_QUESTION.format(x=sentence),
                    answer=f'{SEG_TOKEN}.',
                    expression=sentence,
                )

    def _segment_groups(self) -> Iterator[dict]:
        """Groups in turn as one mask and as one mask per member, which have no order."""
        for number, group in enumerate(self._image.groups[:2]):
            masks = [self._image.objects[i].segmentation for i in group.members]
            if number % 2:
                self._masks.append(dict(union=masks))
                answer = f'{SEG_TOKEN}.'
            else:
                self._masks += masks
                answer = ' and '.join([SEG_TOKEN] * len(masks)) + '.'
            yield dict(question=SEGMENT_QUESTION.format(x=group.sentence), answer=answer)

    def _segment_nothing(self) -> dict:
        shown = {(o.attributes['colour'], o.attributes['kind']) for o in self._image.objects}
        absent = [
            f'{colour} {kind}'
            for colour in COLOURS
            for kind in KINDS
            if (colour, kind) not in shown
        ]
        phrase = f'the {absent[self._rng.integers(len(absent))]}'
        self._masks.append([])
        return dict(
            question=SEGMENT_QUESTION.format(x=phrase),
            answer=f'No target {SEG_TOKEN}.',
            expression=phrase,
            no_target=True,
        )

    def _describe(self) -> Iterator[dict]:
        for k, item in zip(self._ids, self._image.objects):
            text = article(item.description)
            yield dict(
                question=DESCRIBE_QUESTIONS[k % len(DESCRIBE_QUESTIONS)].format(r=f'<Prompt{k}>'),
                answer=f'<Prompt{k}>: {text}',
                references=[text],
            )
        token = f'<Prompt{self._absent}>'
        yield dict(
            question=DESCRIBE_QUESTIONS[0].format(r=token), answer=f'{token} is not in the image.'
        )

    def _ask(self) -> dict:
        i = int(self._rng.integers(len(self._ids)))
        name, values = (('colour', tuple(COLOURS)), ('kind', KINDS))[self._rng.integers(2)]
        right = self._image.objects[i].attributes[name]
        wrong = [value for value in values if value != right]
        choices = [wrong[j] for j in self._rng.choice(len(wrong), len(LETTERS) - 1, replace=False)]
        position = int(self._rng.integers(len(LETTERS)))
        choices.insert(position, right)
        stem = MCQ_STEMS[name].format(r=f'<Prompt{self._ids[i]}>')
        return dict(
            question=format_choices(stem, choices),
            answer=it_is(right),
            choices=choices,
            correct=LETTERS[position],
        )

    def _spell(self, i: int, item: WorldObject) -> Any:
        """Mask of an object as the world has it, as a PNG, as a segment of one, or as a union."""
        stem = Path(self._image.file_name).stem
        spelling = item.ann_id % 4
        if spelling == 1:
            return dict(png=self._save(f'{stem}_{i}.png', self._decoded[i] * np.uint8(255)))
        if spelling == 2:
            # Ids that need all three bytes.
            segment = item.ann_id * 0x10101 & 0xFFFFFF
            pixels = np.stack(
                [self._decoded[i] * np.uint8(segment >> bits & 255) for bits in (0, 8, 16)], -1
            )
            return dict(png=self._save(f'{stem}_{i}_segments.png', pixels), ids=[segment])
        if spelling == 3:
            return dict(union=[item.segmentation])
        return item.segmentation

    def _save(self, name: str, pixels: np.ndarray) -> str:
        path = self._folder / self._image.split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path.relative_to(self._folder).as_posix()

    def _prompt(self, i: int) -> dict:
        """Prompt on an object, of another kind for each object of the image."""
        item, head = self._image.objects[i], dict(id=self._ids[i])
        kind = PROMPT_KINDS[(self._image.image_id + i) % len(PROMPT_KINDS)]
        if kind == 'mask':
            return dict(head, mask=item.segmentation)
        if kind == 'box':
            x, y, width, height = item.bbox
            return dict(head, box=[x, y, x + width, y + height])
        row, first, last = _longest_run(self._decoded[i])
        if kind == 'point':
            return dict(head, point=[(first + last) // 2, row])
        return dict(head, scribble=[[first + 0.5, row + 0.5], [last + 0.5, row + 0.5]], width=_PEN)


def _longest_run(mask: np.ndarray) -> tuple[int, int, int]:
    """Row, first and last column of the longest horizontal run of a mask."""
    best = (0, 0, -1)
    for row in np.flatnonzero(mask.any(1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[row].astype(np.int8), [0]])))
        for first, end in edges.reshape(-1, 2):
            if end - first > best[2] - best[1] + 1:
                best = int(row), int(first), int(end) - 1
    return best
