"""Drawn data as people have it: a folder of images, a mask file per object, a table of phrases."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pixelsail_mm.worlds.shapes_world.annotate import annotate_image, encode_image
from pixelsail_mm.worlds.shapes_world.presets import FULL, KINDS

# The kinds that no preset draws: a model trained on ShapesWorld has the words, but never saw one.
# Few colours, so that a colour alone seldom tells which object is meant, and few objects, so that a
# shape alone often does: what is new here is learned in few steps.
UNSEEN = replace(
    FULL,
    name='unseen',
    kinds=tuple(kind for kind in KINDS if kind not in FULL.kinds),
    colours=FULL.colours[:3],
    num_objects=(2, 3),
    spoken=('colour', 'kind'),
    train_shares=(0.8, 0.1, 0.1),
    eval_cycle=('attribute',),
    sentences_per_object=2,
    eval_refs_per_image=2,
    image_format='png',
    counts={'train': 300, 'val': 60, 'test': 0},
)
COLUMNS = ('image', 'mask', 'phrase', 'split')


def draw_mask_table(
    folder: str | os.PathLike, seed: int = 0, counts: dict[str, int] | None = None
) -> dict[str, int]:
    """Draw images, masks and ``masks.csv``, which lists (image, mask, phrase, split).

    The shapes are crescents and arrows, which no preset of ShapesWorld has.

    Args:
        folder: Folder to create; it gets ``images``, ``masks`` and ``masks.csv``.
        seed: Seed of everything drawn.
        counts: Images of ``train`` and ``val``, 300 and 60 by default.

    Returns:
        Number of images, masks and rows.

    Raises:
        FileExistsError: The folder has something in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f'{folder} exists and is not empty; it is left untouched, choose another folder'
        )
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True)
    preset = UNSEEN.with_options(counts=counts)
    rows = [
        row
        for split in ('train', 'val')
        for number in range(preset.counts[split])
        for row in _draw(folder, preset, seed, split, number)
    ]
    with open(folder / 'masks.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerows([COLUMNS, *rows])
    return dict(
        images=len({row[0] for row in rows}), masks=len({row[1] for row in rows}), rows=len(rows)
    )


def _draw(folder: Path, preset, seed: int, split: str, number: int) -> Iterator[tuple[str, ...]]:
    """Write one image with the masks that are talked about, give its rows."""
    pixels, record = annotate_image(preset, seed, split, number)
    stem = f'{split}_{number:04d}'
    (folder / 'images' / f'{stem}.png').write_bytes(encode_image(pixels, 'png'))
    for index, sentences in record['refs']:
        mask = coco_mask.decode(record['objects'][index]['rle'])
        name = f'{stem}_{index}.png'
        Image.fromarray(mask * np.uint8(255)).save(folder / 'masks' / name)
        for sentence in sentences:
            yield f'{stem}.png', name, sentence['text'], split
