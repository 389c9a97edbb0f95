"""Writing of annotation files: JSON, and RefCOCO's pair of files."""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

# Same protocol as the public refs files, which every Python 3 reads.
_PICKLE_PROTOCOL = 2


def dump_json(content, path: Path) -> None:
    """Write compact JSON, creating the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(',', ':')), encoding='utf-8')


def dump_refs(refs: list[dict], path: Path) -> None:
    """Pickle references in the protocol of the public files, creating the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(refs, _PICKLE_PROTOCOL))


class RefCOCOWriter:
    """Collects images, annotations and references of one RefCOCO folder.

    Args:
        categories: Category names; ids count from 1.
        image_size: Side of images that are added without a size, in pixels.
    """

    def __init__(self, categories: Iterable[str], image_size: int = 0) -> None:
        self._categories = {name: i for i, name in enumerate(categories, 1)}
        self._size = image_size, image_size
        self._images: list[dict] = []
        self._annotations: list[dict] = []
        self._refs: list[dict] = []
        self._num_sentences = 0
        self.kinds: dict[str, Counter] = defaultdict(Counter)

    def add_image(self, file_name: str, size: tuple[int, int] | None = None) -> int:
        """Register an image (path below the image root) of size (H, W) and give its id."""
        image_id = len(self._images) + 1
        height, width = size or self._size
        self._images.append(dict(id=image_id, file_name=file_name, height=height, width=width))
        return image_id

    def add_annotation(
        self, image_id: int, category: str, segmentation, bbox: list[int], area: int, **extra
    ) -> int:
        """Register one annotation, with any extra keys, and give its id."""
        ann_id = len(self._annotations) + 1
        self._annotations.append(
            dict(
                id=ann_id,
                image_id=image_id,
                category_id=self._categories[category],
                segmentation=segmentation,
                bbox=bbox,
                area=area,
                iscrowd=0,
                **extra,
            )
        )
        return ann_id

    def add_ref(self, ann_id: int, split: str, sentences: list[dict]) -> None:
        """Register the sentences of one annotation.

        Args:
            ann_id: The annotation.
            split: Split of the reference.
            sentences: dicts with ``text``, ``kind`` and, if it is not the text, ``sent``: the plain
                form, which evaluation asks.
        """
        annotation = self._annotations[ann_id - 1]
        entries = []
        for sentence in sentences:
            self._num_sentences += 1
            self.kinds[split][sentence['kind']] += 1
            plain = sentence.get('sent', sentence['text'])
            entries.append(
                dict(
                    sent_id=self._num_sentences,
                    raw=sentence['text'],
                    sent=plain,
                    tokens=plain.split(),
                    kind=sentence['kind'],
                )
            )
        self._refs.append(
            dict(
                ref_id=len(self._refs) + 1,
                ann_id=ann_id,
                image_id=annotation['image_id'],
                file_name=self._images[annotation['image_id'] - 1]['file_name'],
                category_id=annotation['category_id'],
                split=split,
                sentences=entries,
                sent_ids=[entry['sent_id'] for entry in entries],
            )
        )

    def write(self, folder: Path) -> None:
        """Write ``instances.json`` and ``refs(unc).p`` into ``folder``."""
        categories = [dict(id=i, name=name) for name, i in self._categories.items()]
        dump_json(
            dict(images=self._images, annotations=self._annotations, categories=categories),
            folder / 'instances.json',
        )
        # Pickle shares equal strings only if they are one object, which depends on the process
        # that drew them; fresh objects make the bytes depend on the content alone.
        refs = json.loads(json.dumps(self._refs))
        dump_refs(refs, folder / 'refs(unc).p')
