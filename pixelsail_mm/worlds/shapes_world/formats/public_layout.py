"""ShapesWorld in the folders and files of the public data sets, as the manifest lists them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixelsail_mm.datasets.files.annotation_files import load_json
from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.manifest.entries import DATA_FOLDER, load_manifest, paths_of
from pixelsail_mm.worlds.shapes_world.formats import (
    captions,
    gcg,
    grefcoco,
    muse,
    osprey,
    panoptic,
    perbench,
    pix2cap,
    pixel_chat,
    reason_seg,
    referring,
    regions,
)
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, read_world
from pixelsail_mm.worlds.shapes_world.presets import SPLITS

IMAGES, EXPERT, TOKENIZER = 'images', 'expert', 'tokenizer'
# Public images are JPEG files, and readers of image folders look for this suffix.
_SUFFIX = '.jpg'
# Writer of each format, and where its files go below the data folder. `{}` stands for a split.
_PLACES: tuple[tuple[Callable, dict[str, str]], ...] = (
    (referring.write, {name: f'ref_seg/{name}' for name in ('refcoco', 'refcoco+', 'refcocog')}),
    (grefcoco.write, {'': 'ref_seg/grefs'}),
    (
        panoptic.write,
        {
            'panoptic_{}.json': 'coco/annotations/panoptic_{}2017.json',
            'panoptic_{}': 'coco/annotations/panoptic_{}2017',
        },
    ),
    (gcg.write, {'annotations': 'glamm_data/annotations'}),
    (muse.write, {'': 'muse'}),
    (pix2cap.write, {'pix2cap_coco_{}.json': 'pixel2cap/pix2cap_coco_{}.json'}),
    (
        regions.write,
        {
            'osprey_detail_description_train.json': 'osprey-724k/osprey_detail_description.json',
            'sam_regions_train.json': 'sam_region/sam_region_train.json',
            **{
                name: f'ref_seg/refcocog/{name}'
                for split in ('val', 'test')
                for part in ('with_mask', 'captions')
                for name in (f'finetune_refcocog_{split}_{part}.json',)
            },
        },
    ),
    (osprey.write, {'': 'osprey-724k'}),
    (reason_seg.write, {'': 'lisa_reasoning'}),
    (perbench.write, {'': 'perbench'}),
    (captions.write, {'captions_train.json': 'captions/captions_train.json'}),
    (pixel_chat.write, {'': 'pixel_chat'}),
)
# Image folders that no reader of the manifest names.
_MORE_IMAGE_FOLDERS = ('pixel_chat/images', 'captions/images')


def write_public_layout(root: Path, out: Path, seed: int = 0) -> list[str]:
    """Write a ShapesWorld as all data sets of the manifest.

    Every path is the one that ``manifest.yml`` names, with ``out`` in the place of ``data``, so the
    configs for the public data run on it. The images get flat names (``000000000017.jpg``) in
    ``out/images``; the image folders of the data sets are links to it. The world's tokenizer and
    its expert maps, under the new names of the images, lie in ``out/tokenizer`` and ``out/expert``.

    Args:
        root: Folder of a world with JPEG images (preset ``full``).
        out: Folder to create.
        seed: Seed of what the formats draw.

    Returns:
        The written files and links, relative to ``out``, without images and expert maps.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
        FileNotFoundError: ``root`` is no ShapesWorld.
        ValueError: The images of the world are not JPEG files.
    """
    world = read_world(root)
    wrong = [image.file_name for image in world if not image.file_name.endswith(_SUFFIX)]
    if wrong:
        raise ValueError(
            f'{root}: the images must be {_SUFFIX} files as in the public data sets, '
            f'not {wrong[0]}; draw the world with --preset full'
        )
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f'{out} is not empty; give another folder or remove it')
    flat = [replace(image, file_name=f'{image.image_id:012d}{_SUFFIX}') for image in world]
    _link_images(world, flat, root, out)
    _link_image_folders(flat, out)
    _write_formats(flat, root, out, seed)
    _write_llava(flat, root, out)
    shutil.copytree(root / TOKENIZER, out / TOKENIZER)
    skipped = {out / IMAGES, out / EXPERT}
    return sorted(
        str(path.relative_to(out))
        for path in out.rglob('*')
        if not path.is_dir() and not skipped & set(path.parents)
    )


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copies it where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _link_images(
    world: Sequence[WorldImage], flat: Sequence[WorldImage], root: Path, out: Path
) -> None:
    for old, new in zip(world, flat):
        _link(root / IMAGES / old.file_name, out / IMAGES / new.file_name)
        maps = (root / EXPERT / old.file_name).with_suffix('.npz')
        if maps.is_file():
            _link(maps, (out / EXPERT / new.file_name).with_suffix('.npz'))


def _link_image_folders(flat: Sequence[WorldImage], out: Path) -> None:
    """Make every image folder of the manifest; ReasonSeg's hold images of one split each."""
    folders = set(_MORE_IMAGE_FOLDERS)
    for entry in load_manifest()['datasets'].values():
        for reader in (entry['reader'], entry.get('evaluation_reader', entry['reader'])):
            if reader['type'] != 'ReasonSegDataset':
                folders |= {
                    os.path.relpath(path, DATA_FOLDER)
                    for key, path in paths_of(reader).items()
                    if key.startswith('data_prefix.') and not key.endswith('seg_map_path')
                }
    for folder in sorted(folders):
        path = out / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(out / IMAGES, path.parent), target_is_directory=True)
    for image in flat:
        _link(
            out / IMAGES / image.file_name, out / 'lisa_reasoning' / image.split / image.file_name
        )


def _write_formats(flat: Sequence[WorldImage], root: Path, out: Path, seed: int) -> None:
    for number, (write, places) in enumerate(_PLACES):
        with tempfile.TemporaryDirectory(dir=out) as staging:
            write(flat, root, Path(staging), np.random.default_rng([seed, number]))
            for source, target in places.items():
                for split in SPLITS if '{}' in source else ('',):
                    _move(Path(staging) / source.format(split), out / target.format(split))


def _move(source: Path, target: Path) -> None:
    """Move a file, or what is in a folder, next to what is there already."""
    if source.is_dir():
        for child in source.iterdir():
            _move(child, target / child.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def _write_llava(flat: Sequence[WorldImage], root: Path, out: Path) -> None:
    """Write the instructions of the world, and its captions as conversations to pre-train on."""
    names = iter([image.file_name for image in flat if image.split == 'train'])
    entries = load_json(str(root / 'llava' / 'llava_train.json'), 'root', list)
    dump_json(
        [dict(entry, image=next(names)) if 'image' in entry else entry for entry in entries],
        out / 'llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json',
    )
    described = load_json(str(out / 'captions/captions_train.json'), 'out', list)
    dump_json(
        [
            dict(
                id=str(entry['id']),
                image=entry['image'],
                conversations=[
                    {'from': 'human', 'value': 'Describe the picture.\n<image>'},
                    {'from': 'gpt', 'value': entry['captions'][0]},
                ],
            )
            for entry in described
        ],
        out / 'llava_pretrain/blip_laion_cc_sbu_558k.json',
    )
