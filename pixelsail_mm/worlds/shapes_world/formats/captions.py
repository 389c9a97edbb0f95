"""ShapesWorld as image-caption pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.worlds.shapes_world.formats.gcg import compose_caption
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage
from pixelsail_mm.worlds.shapes_world.presets import SPLITS


def list_objects(image: WorldImage) -> str:
    """A caption that lists all objects of an image."""
    phrases = [f'a {item.description}' for item in image.objects]
    return f'A picture of {", ".join(phrases)}.'


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write ``captions_{split}.json`` and ``captions_{split}.jsonl``.

    The list has all captions of an image in one entry, the lines have one caption each.

    Args:
        world: The images.
        root: Folder of the world; the reader takes the images from its folder ``images``.
        out: Folder to write into.
        rng: Draws the captions.
    """
    for split in SPLITS:
        entries = []
        for image in world:
            if image.split == split:
                texts = [list_objects(image), compose_caption(image, rng).text]
                entries.append(
                    dict(
                        id=image.image_id,
                        image=image.file_name,
                        height=image.height,
                        width=image.width,
                        captions=[text for text in texts if text],
                    )
                )
        dump_json(entries, out / f'captions_{split}.json')
        lines = [
            json.dumps(dict(id=f'{entry["id"]}_{i}', image=entry['image'], caption=caption))
            for entry in entries
            for i, caption in enumerate(entry['captions'])
        ]
        (out / f'captions_{split}.jsonl').write_text(
            ''.join(f'{line}\n' for line in lines), encoding='utf-8'
        )
