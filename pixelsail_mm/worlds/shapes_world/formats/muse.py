"""ShapesWorld in the MUSE format: questions about one or several targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject
from pixelsail_mm.worlds.shapes_world.presets import SPLITS

_QUESTIONS = ('Can you find {x}?', 'I need to see {x}.', 'Show the way to {x}.')
_URL = 'http://localhost/{folder}/{name}'
_MAX_QUESTIONS = 2
_MAX_TARGETS = 3
_TEXT_SHARE = 0.5
_REPHRASED_SHARE = 0.7


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write ``MUSE_train.json``, ``MUSE_val.json`` and ``MUSE_test.json``.

    Images of which no object has a sentence are left out. Training images are named by
    ``file_name`` and by ``coco_url`` in turn, validation images by ``coco_url``, test images by
    ``file_name``. Hence the folders of the reader: ``train2014`` is the world's ``images``,
    ``train2017`` and ``val2017`` are ``images/train`` and ``images/val``.

    Args:
        world: See :func:`.world.read_world`.
        root: Folder of the world; not used, the images stay in it.
        out: Folder to write into.
        rng: Draws questions, targets and kinds of answers.
    """
    entries: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for image in world:
        named = [item for item in image.objects if item.sentences]
        if not named:
            continue
        drawn = [_draw_targets(named, rng) for _ in range(rng.integers(1, _MAX_QUESTIONS + 1))]
        entry = dict(
            _place(image, len(entries[image.split])),
            image_id=image.image_id,
            height=image.height,
            width=image.width,
            ann_list=[item.ann_id for item in image.objects],
            questions=[_ask(targets, rng) for targets in drawn],
            answers=[[_answer(item, text, rng) for item, text in targets] for targets in drawn],
        )
        if rng.random() < _TEXT_SHARE:
            entry['text_answers'] = [_tell(targets) for targets in drawn]
        entries[image.split].append(entry)
    for split, content in entries.items():
        dump_json(content, out / f'MUSE_{split}.json')


def _place(image: WorldImage, number: int) -> dict:
    if image.split == 'test' or (image.split == 'train' and number % 2 == 0):
        return dict(file_name=image.file_name)
    name = image.file_name.removeprefix(f'{image.split}/')
    return dict(coco_url=_URL.format(folder=f'{image.split}2017', name=name))


def _draw_targets(
    named: list[WorldObject], rng: np.random.Generator
) -> list[tuple[WorldObject, str]]:
    """Different objects, each with one of its sentences."""
    count = rng.integers(1, min(_MAX_TARGETS, len(named)) + 1)
    chosen = [named[i] for i in rng.permutation(len(named))[:count]]
    return [(item, item.sentences[rng.integers(len(item.sentences))]) for item in chosen]


def _ask(targets: list[tuple[WorldObject, str]], rng: np.random.Generator) -> str:
    pattern = _QUESTIONS[rng.integers(len(_QUESTIONS))]
    return pattern.replace('{x}', ' and '.join(text for _, text in targets))


def _answer(item: WorldObject, text: str, rng: np.random.Generator) -> dict:
    answer = dict(segmentation=item.segmentation, category_name=item.attributes['kind'])
    return dict(answer, rephrased_name=text) if rng.random() < _REPHRASED_SHARE else answer


def _tell(targets: list[tuple[WorldObject, str]]) -> str:
    return ' '.join(f'There is {text} {{seg}}.' for _, text in targets)
