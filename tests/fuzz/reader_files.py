"""Small valid files of every annotation format, and the reader of each."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pixelsail_mm.datasets.manifest import dataset_cfg, evaluation_splits, load_manifest
from pixelsail_mm.errors import UserError
from pixelsail_mm.registry import DATASETS
from tests.fuzz.defects import damage, damage_bytes, damage_text

# Kept of each format, for the speed of a case.
_IMAGES, _REFS = 3, 12
_FILE_OPTIONS = ('ann_file', 'split_file', 'captions_file')
_OWN = {
    'captions': dict(
        type='ImageCaptionDataset',
        ann_file='captions/captions_train.json',
        data_prefix=dict(img_path='captions/images'),
    ),
    'pixel_chat': dict(
        type='PixelChatDataset',
        ann_file='pixel_chat/pixel_chat_train.json',
        data_prefix=dict(img_path='pixel_chat/images', mask_path='pixel_chat/masks'),
    ),
}


def names() -> list[str]:
    """Every format in training and, where it has one, in test mode (``:test``)."""
    manifest = load_manifest()['datasets']
    training = [name for name in manifest if not name.startswith('perbench')]
    tested = [f'{name}:test' for name in manifest if evaluation_splits(name)]
    panoptic = ('coco_panoptic', 'pix2cap_seg', 'pix2cap_region', 'coco_region_class')
    more = (*panoptic, *_OWN, 'muse', 'osprey_conversation', 'osprey_description', 'sam_region')
    return [*training, *_OWN, *tested, *(f'{name}:test' for name in more)]


def reader_config(name: str, root: Path) -> dict:
    """Config of the reader of a format, see :func:`names`, in the public layout in ``root``."""
    name, _, mode = name.partition(':')
    if name in _OWN:
        cfg = dict(_OWN[name], data_root=str(root))
    else:
        splits = evaluation_splits(name)
        cfg = dataset_cfg(name, root=str(root), evaluation=splits[0] if mode and splits else None)
    return cfg | (dict(test_mode=True) if mode else {})


def _stages(tokenizer: Path, generation: bool) -> list[dict]:
    """All stages, as in training or in a test."""
    return [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='LoadIgnoreMasks'),
        dict(type='LoadVisualPrompts'),
        dict(type='ResizeToGrid', patch_size=16, max_size=64),
        dict(type='BuildConversation', tokenizer=str(tokenizer), generation=generation),
        dict(type='PackPixelInputs'),
    ]


class Format:
    """One format: small valid content of its files, and what is read of it.

    Args:
        name: See :func:`names`.
        root: Folder of the public layout.
        folder: Where damaged files are written; empty.
    """

    def __init__(self, name: str, root: Path, folder: Path) -> None:
        stages = _stages(root / 'tokenizer', generation=name.endswith(':test'))
        cfg = reader_config(name, root) | dict(pipeline=stages, max_refetch=5)
        self.root, self.folder = root, folder
        base = Path(cfg['data_root'])
        options = [option for option in _FILE_OPTIONS if option in cfg]
        self.contents: dict[str, Any] = {}
        if options:
            contents = {option: _load(base / cfg[option]) for option in options}
            shortened = _shortened(contents, cfg)
            for option in options:
                path = folder / Path(cfg[option]).name
                cfg[option] = str(path)
                self.contents[path.name] = shortened[option]
        else:  # a folder of files
            images = base / cfg['data_prefix']['img_path']
            for path in sorted(images.glob('*.json'))[:_IMAGES]:
                self.contents[path.name] = _load(path)
                photo = path.with_suffix('.jpg').name
                (folder / photo).symlink_to(images / photo)
            cfg.update(ann_file=str(folder), data_prefix=dict(img_path=str(folder)))
        self.cfg = cfg
        for file in self.contents:
            self._write(file, self._encoded(file))
        self._damaged = ''
        self._others: dict[tuple[str, int], list[str]] = {}
        self.whole = self.records(self.read())

    def _write(self, file: str, content: bytes) -> None:
        (self.folder / file).write_bytes(content)

    def _encoded(self, file: str, content: Any = None) -> bytes:
        content = self.contents[file] if content is None else content
        if file.endswith('.p'):
            return pickle.dumps(content, random.Random(0).choice((2, 4)))
        return json.dumps(content).encode()

    def read(self) -> Any:
        """Build the reader and draw every sample once."""
        dataset = DATASETS.build(self.cfg)
        for i in range(len(dataset)):
            dataset[i]
        return dataset

    def records(self, dataset: Any) -> list[str]:
        """What every item is, in words; without its number, which others may change."""
        found = []
        for i in range(len(dataset)):
            try:
                record = dataset.record(i, np.random.default_rng(0))
            except UserError:
                continue
            record['meta'] = {k: v for k, v in record['meta'].items() if k != 'sample_id'}
            found.append(repr(record))
        return found

    def damaged(self, seed: int) -> tuple[Callable[[], Any], str, list[str]]:
        """Write one defect.

        Args:
            seed: Of the case.

        Returns:
            What reads the files, the defect in words, and what must be read nevertheless.
        """
        rng = random.Random(seed)
        self.mend()
        file = rng.choice(list(self.contents))
        others: list[str] = []
        if rng.random() < 0.2:
            harm = damage_bytes if file.endswith('.p') else damage_text
            content, said = harm(self._encoded(file), rng)
        else:
            value, path, said = damage(self.contents[file], rng)
            content = self._encoded_or_text(file, value)
            if len(path) > 1 and isinstance(self.contents[file], list) and len(self.contents) == 1:
                others = self._without(file, path[0])
        self._write(file, content)
        self._damaged = file
        return self.read, f'{file}: {said}', others

    def _encoded_or_text(self, file: str, value: Any) -> bytes:
        try:
            return self._encoded(file, value)
        except (TypeError, ValueError, RecursionError):  # JSON has no name for a key like that
            return repr(value).encode(errors='replace')

    def _without(self, file: str, number: int) -> list[str]:
        """Records of the file that do not come from one of its entries."""
        if (file, number) not in self._others:
            # Another entry in its place, so that all others keep their numbers.
            entries = list(self.contents[file])
            entries[number] = entries[number - 1]
            self._write(file, self._encoded(file, entries))
            try:
                found = self.records(self.read())
            except UserError:  # an id may be there twice
                found = []
            self._others[file, number] = [record for record in self.whole if record in found]
        return self._others[file, number]

    def mend(self) -> None:
        """Write the valid file again in the place of the damaged one."""
        if self._damaged:
            self._write(self._damaged, self._encoded(self._damaged))
            self._damaged = ''


def _load(path: Path) -> Any:
    if path.suffix == '.p':
        return pickle.loads(path.read_bytes())  # noqa: S301 - written by our own world
    return json.loads(path.read_text(encoding='utf-8'))


def _shortened(contents: dict[str, Any], cfg: dict) -> dict[str, Any]:
    """A few images of each file, the same ones in all files of the format."""
    refs = contents.get('split_file')
    if refs is not None:
        split = cfg.get('split', 'train')
        refs = [ref for ref in refs if ref['split'] == split]
        wanted = list(dict.fromkeys(ref['image_id'] for ref in refs))[:_IMAGES]
        refs = [ref for ref in refs if ref['image_id'] in wanted][:_REFS]
        wanted = {ref['image_id'] for ref in refs}
    else:
        first = contents['ann_file']
        wanted = {image['id'] for image in first['images'][:_IMAGES]} if _is_table(first) else set()
    return {
        option: refs if option == 'split_file' else _first(content, wanted)
        for option, content in contents.items()
    }


def _is_table(content: Any) -> bool:
    return isinstance(content, dict)


def _first(content: Any, wanted: set) -> Any:
    if not _is_table(content):
        text_only = [entry for entry in content if 'turns' in entry and 'image' not in entry]
        return [*content[:_IMAGES], *text_only[:1]]
    kept = {
        'images': [image for image in content['images'] if image['id'] in wanted],
        'annotations': [row for row in content['annotations'] if row['image_id'] in wanted],
    }
    return {**content, **kept}
