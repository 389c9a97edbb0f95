"""ShapesWorld as grounded captions in GLaMM's layouts: four to train, one to evaluate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from pixelsail_mm.datasets.files.annotation_writer import dump_json
from pixelsail_mm.datasets.files.masks import decode_mask, mask_to_rle
from pixelsail_mm.worlds.shapes_world.formats.world import WorldImage, WorldObject
from pixelsail_mm.worlds.shapes_world.presets import SPLITS
from pixelsail_mm.worlds.shapes_world.segmentation import mask_bbox


@dataclass
class ComposedCaption:
    """A caption and what its phrases name.

    Attributes:
        text: The caption.
        spans: (first character, character behind the last one, indices of the objects).
    """

    text: str = ''
    spans: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)

    def say(self, words: str) -> None:
        """Append words that name nothing."""
        self.text += words

    def name(self, phrase: str, members: Sequence[int]) -> None:
        """Append a phrase that names objects."""
        self.spans.append((len(self.text), len(self.text) + len(phrase), tuple(members)))
        self.text += phrase


def relation(one: WorldObject, other: WorldObject) -> str | None:
    """Where ``one`` is as seen from ``other``; None where their boxes overlap on both axes."""
    for axis, (before, behind) in enumerate((('left of', 'right of'), ('above', 'below'))):
        if one.bbox[axis] + one.bbox[axis + 2] <= other.bbox[axis]:
            return before
        if other.bbox[axis] + other.bbox[axis + 2] <= one.bbox[axis]:
            return behind
    return None


def compose_caption(image: WorldImage, rng: np.random.Generator) -> ComposedCaption:
    """Compose a caption of an image.

    Every object whose description is its own is named once, in random order and in pairs with
    their relation; then comes one group of the image, if it has any.

    Args:
        image: The image.
        rng: Draws the order and the group.

    Returns:
        The caption; without spans if all objects look like another one.
    """
    looks = Counter(item.description for item in image.objects)
    distinct = [i for i, item in enumerate(image.objects) if looks[item.description] == 1]
    order = [distinct[i] for i in rng.permutation(len(distinct))]
    caption = ComposedCaption()
    for first, second in zip(order[::2], order[1::2]):
        _name_pair(caption, image.objects, first, second)
    if len(order) % 2:
        caption.say('There is ')
        caption.name(f'a {image.objects[order[-1]].description}', [order[-1]])
        caption.say('. ')
    if image.groups:
        group = image.groups[rng.integers(len(image.groups))]
        caption.say('The picture shows ')
        caption.name(group.sentence, group.members)
        caption.say('. ')
    caption.text = caption.text.rstrip()
    return caption


def _name_pair(
    caption: ComposedCaption, objects: Sequence[WorldObject], first: int, second: int
) -> None:
    where = relation(objects[first], objects[second])
    caption.name(f'A {objects[first].description}', [first])
    caption.say(f' is {where} ' if where else ' and ')
    caption.name(f'a {objects[second].description}', [second])
    caption.say('. ' if where else ' are in the picture. ')


def object_rle(image: WorldImage, index: int) -> dict:
    """Run lengths of an object's visible mask."""
    segmentation = image.objects[index].segmentation
    return segmentation if isinstance(segmentation, dict) else mask_to_rle(_mask(image, index))


def _mask(image: WorldImage, index: int) -> np.ndarray:
    segmentation = image.objects[index].segmentation
    return decode_mask(segmentation, image.height, image.width, None, 'segmentation')


def _refcocog(images: Sequence[WorldImage], rng: np.random.Generator) -> list[dict]:
    """Capitals in the sentences; a group is one sentence of several references."""
    entries = []
    for image in images:
        caption = compose_caption(image, rng)
        refs = [
            dict(
                sentence=caption.text[start:end].title(), segmentation=image.objects[i].segmentation
            )
            for start, end, members in caption.spans
            for i in members
        ]
        refs = [refs[i] for i in rng.permutation(len(refs))]
        refs.append(dict(sentence='a grey elephant', segmentation=image.objects[0].segmentation))
        entries.append(
            {
                str(image.image_id): dict(
                    img_file_name=image.file_name, caption=caption.text, refs=refs
                )
            }
        )
    return entries


def _grandf(images: Sequence[WorldImage], rng: np.random.Generator) -> list[dict]:
    """Every second caption in quotes, which the positions count."""
    entries = []
    for number, image in enumerate(images):
        caption = compose_caption(image, rng)
        quote = '"' if number % 2 else ''
        groundings: dict = {'picture': None}
        for start, end, members in caption.spans:
            groundings[caption.text[start:end]] = dict(
                token_positives=[start + len(quote), end + len(quote)],
                rle_masks=[object_rle(image, i) for i in members],
            )
        entries.append(
            dict(
                file_name=image.file_name,
                caption=f'{quote}{caption.text}{quote}',
                groundings=groundings,
            )
        )
    return entries


def _flickr(images: Sequence[WorldImage], rng: np.random.Generator) -> dict:
    """Several boxes of one phrase, a phrase within another one, and an ignored annotation."""
    entries, annotations = [], []

    def add(image: WorldImage, index: int, start: int, end: int, **extra) -> None:
        item = image.objects[index]
        annotations.append(
            dict(
                id=len(annotations) + 1,
                image_id=image.image_id,
                category_id=1,
                iscrowd=0,
                bbox=item.bbox,
                area=item.area,
                tokens_positive=[[start, end]],
                sam_mask=object_rle(image, index),
                **extra,
            )
        )

    for image in images:
        caption = compose_caption(image, rng)
        entries.append(
            dict(
                id=image.image_id,
                file_name=image.file_name,
                height=image.height,
                width=image.width,
                caption=caption.text,
            )
        )
        for start, end, members in caption.spans:
            for index in members:
                add(image, index, start, end)
        for start, end, members in caption.spans[:1]:
            last_word = caption.text.rindex(' ', start, end) + 1
            add(image, members[0], last_word, end)
            add(image, (members[0] + 1) % len(image.objects), start, end, ignore=1)
    categories = [dict(id=1, name='object')]
    return dict(images=entries, annotations=annotations, categories=categories)


def _evaluation(images: Sequence[WorldImage], rng: np.random.Generator) -> tuple[dict, dict]:
    """GLaMM's COCO files of masks and of captions; labels are in another order than the phrases.

    As there, the id of an image is its file name without the suffix, and a phrase has one mask.
    """
    entries, annotations, captions = [], [], []
    for image in images:
        image_id = str(PurePosixPath(image.file_name).with_suffix(''))
        caption = compose_caption(image, rng)
        spans = [caption.spans[i] for i in rng.permutation(len(caption.spans))]
        entries.append(dict(id=image_id, height=image.height, width=image.width))
        captions.append(
            dict(
                id=len(entries),
                image_id=image_id,
                caption=caption.text,
                labels=[caption.text[start:end] for start, end, _ in spans],
            )
        )
        for _, _, members in spans:
            mask = np.logical_or.reduce([_mask(image, i) for i in members])
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=1,
                    iscrowd=0,
                    bbox=mask_bbox(mask),
                    area=int(mask.sum()),
                    segmentation=mask_to_rle(mask),
                )
            )
    categories = [dict(id=1, name='object')]
    return (
        dict(images=entries, annotations=annotations, categories=categories),
        dict(images=entries, annotations=captions),
    )


_LAYOUTS = {
    'RefCOCOg_GCG': _refcocog,
    'GranDf_HA_GCG': _grandf,
    'OpenPsgGCG': _grandf,
    'flickr_mergedGT_GCG': _flickr,
}


def write(world: Sequence[WorldImage], root: Path, out: Path, rng: np.random.Generator) -> None:
    """Write ``annotations/{layout}_{split}.json`` of all four layouts.

    For validation and test also ``annotations/val_test/{split}_gcg_coco_mask_gt.json`` and its
    ``{split}_gcg_coco_caption_gt.json``, in which the image ``val/000000.jpg`` has the id
    ``val/000000``.

    Args:
        world: The images.
        root: Folder of the world; the readers take the images from its folder ``images``.
        out: Folder to write into.
        rng: Draws the captions, anew for every layout.
    """
    for split in SPLITS:
        images = [image for image in world if image.split == split]
        for name, layout in _LAYOUTS.items():
            dump_json(layout(images, rng), out / 'annotations' / f'{name}_{split}.json')
        if split != 'train':
            masks, captions = _evaluation(images, rng)
            folder = out / 'annotations' / 'val_test'
            dump_json(masks, folder / f'{split}_gcg_coco_mask_gt.json')
            dump_json(captions, folder / f'{split}_gcg_coco_caption_gt.json')
