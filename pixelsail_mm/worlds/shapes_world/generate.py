"""Generate a whole ShapesWorld data set on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.templates import templates_version
from pixelsail_mm.worlds.shapes_world.annotate import annotate_image, encode_image
from pixelsail_mm.worlds.shapes_world.expert_maps import write_expert_map
from pixelsail_mm.worlds.shapes_world.presets import GENERATOR_VERSION, PRESETS, SPLITS, Preset
from pixelsail_mm.worlds.shapes_world.tokenizer import train_tokenizer
from pixelsail_mm.worlds.shapes_world.writers import AnnotationWriter

GENERATOR = 'shapes_world'
_TEXT_ONLY_STREAM = len(SPLITS)
_CHUNK = 32


def make_shapes_world(
    out: str | os.PathLike,
    preset: str | Preset = 'mini',
    seed: int = 0,
    counts: dict[str, int] | None = None,
    image_size: int | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> dict:
    """Draw a ShapesWorld data set with all annotation files and its tokenizer.

    Everything is written to a neighbouring temporary folder first and renamed at the end, so an
    interrupted run leaves no folder that looks complete. Equal arguments give equal bytes,
    whatever the number of workers.

    Args:
        out: Folder to create.
        preset: ``'mini'``, ``'full'`` or a :class:`Preset`.
        seed: Seed of all images and texts; the tokenizer does not depend on it.
        counts: Images per split, overriding the preset's.
        image_size: Side of the images in pixels, overriding the preset's.
        workers: Processes that draw.
        overwrite: Replace a data set this function made before.

    Returns:
        Content of ``info.json``: preset, seed, versions and counts.

    Raises:
        KeyError: Unknown preset.
        FileExistsError: ``out`` exists and is foreign, or ``overwrite`` is off.
        RuntimeError: Two images are equal, so the splits would overlap.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise KeyError(f'preset {preset!r} is unknown; choose from {sorted(PRESETS)}')
        preset = PRESETS[preset]
    preset = preset.with_options(image_size, counts)
    target = Path(out).absolute()
    _check_target(target, overwrite)
    partial_folder = target.parent / f'.{target.name}.partial{os.getpid()}'
    try:
        partial_folder.mkdir(parents=True)
        info = _generate(partial_folder, preset, seed, workers)
        if target.exists():
            shutil.rmtree(target)
        partial_folder.rename(target)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return info


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    info = target / 'info.json'
    if not info.is_file() or json.loads(info.read_text()).get('generator') != GENERATOR:
        raise FileExistsError(
            f'{target} exists and is not a ShapesWorld data set; it is left '
            'untouched, choose another folder'
        )
    if not overwrite:
        raise FileExistsError(
            f'{target} already holds a ShapesWorld data set; choose another '
            'folder, or replace it with --overwrite'
        )


def _generate(folder: Path, preset: Preset, seed: int, workers: int) -> dict:
    writer = AnnotationWriter(preset)
    seen: dict[str, str] = {}
    for split in SPLITS:
        (folder / 'images' / split).mkdir(parents=True)
        for file_name, record in _draw_split(folder, preset, seed, split, workers):
            twin = seen.setdefault(record['sha256'], file_name)
            if twin != file_name:
                raise RuntimeError(
                    f'{twin} and {file_name} are the same image; choose another seed'
                )
            writer.add(split, file_name, record)
    counts = writer.write(folder, np.random.default_rng([seed, _TEXT_ONLY_STREAM]))
    tokenizer = train_tokenizer(folder / 'tokenizer')
    info = dict(
        generator=GENERATOR,
        version=GENERATOR_VERSION,
        templates_version=templates_version(),
        preset=preset.name,
        seed=seed,
        image_size=preset.image_size,
        images=preset.counts,
        vocab_size=len(tokenizer),
        **counts,
    )
    dump_json(info, folder / 'info.json')
    return info


def _draw_split(
    folder: Path, preset: Preset, seed: int, split: str, workers: int
) -> Iterator[tuple[str, dict]]:
    draw = partial(_draw_image, folder, preset, seed, split)
    numbers = range(preset.counts[split])
    if workers <= 1:
        yield from map(draw, numbers)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw, numbers, chunksize=_CHUNK)


def _draw_image(
    folder: Path, preset: Preset, seed: int, split: str, number: int
) -> tuple[str, dict]:
    image, record = annotate_image(preset, seed, split, number)
    file_name = f'{split}/{number:06d}.{preset.image_format}'
    (folder / 'images' / file_name).write_bytes(encode_image(image, preset.image_format))
    if split == 'train':
        write_expert_map(
            (folder / 'expert' / file_name).with_suffix('.npz'),
            record['objects'],
            preset.image_size,
        )
    return file_name, record
