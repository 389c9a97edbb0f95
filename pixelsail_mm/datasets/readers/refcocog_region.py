"""Reader of short region captions: RefCOCOg turned around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from pixelsail_mm.datasets.files.annotation_files import load_tables, require_keys, rows_by_image
from pixelsail_mm.datasets.readers.osprey_description import RegionDescriptionDataset
from pixelsail_mm.datasets.readers.refcoco import RefCOCODataset
from pixelsail_mm.errors import AnnotationError
from pixelsail_mm.registry import DATASETS


@DATASETS.register_module()
class RefCOCOgRegionDataset(RegionDescriptionDataset):
    """Region captions from the referring expressions of RefCOCOg.

    Training reads what :class:`~pixelsail_mm.datasets.readers.refcoco.RefCOCODataset` reads. An
    item is an image; its regions are the objects that references name, and a phrase of an object is
    drawn with the sample.

    Test mode reads a COCO file such as ``finetune_refcocog_val_with_mask.json``; an item is one
    annotation, with the ``image_id`` of that annotation. (The release looks annotations up by the
    place of their image.) References are the captions of that ``image_id`` in ``captions_file``
    or, without that file, the ``caption`` of the annotation or of its image, if there is one.

    Args:
        ann_file: ``instances.json``, or the COCO file of test mode.
        split_file: The references, training only.
        split: Split of the references, training only.
        captions_file: COCO captions such as ``finetune_refcocog_val_captions.json``, test mode
            only.
        questions: Template list (name or strings) with ``<region>``.
        test_question: Question of test mode. The release asks in detail in evaluation and for a
            short description in training; give the question that the checkpoint was trained with
            for a fair figure.
        paper: See :class:`~pixelsail_mm.datasets.readers.refcoco.RefCOCODataset`, training only.
        **kwargs: See :class:`RegionDescriptionDataset`.
    """

    file_options = ('split_file', 'captions_file')

    def __init__(
        self,
        ann_file: str = 'instances.json',
        split_file: str = 'refs(umd).p',
        split: str = 'train',
        captions_file: str = '',
        questions: str | Sequence[str] = 'region_short_questions',
        paper: bool = False,
        **kwargs,
    ) -> None:
        self.split_file = split_file
        self.split = split
        self.captions_file = captions_file
        self.paper = paper
        super().__init__(ann_file=ann_file, questions=questions, **kwargs)

    def required_paths(self) -> dict[str, str]:
        """Annotation file, image folders, and the split file or the captions of test mode."""
        paths = super().required_paths()
        paths.pop('split_file' if self.test_mode else 'captions_file')
        return {key: path for key, path in paths.items() if path or key not in self.file_options}

    def load_data_list(self) -> Iterator[dict]:
        """Items: images with their named objects, or single annotations in test mode."""
        return self._read_annotations() if self.test_mode else self._read_references()

    def _read_references(self) -> Iterator[dict]:
        source = RefCOCODataset(
            ann_file=self.ann_file,
            split_file=self.split_file,
            split=self.split,
            data_prefix=self.data_prefix,
            paper=self.paper,
            seed=self.seed,
            name=self.name,
        )
        for reason, times in source.skipped.items():
            self._skips.add(reason, times)
        for i in range(len(source)):
            info = source.get_data_info(i)
            # One region per object: two prompts on the same pixels would hide each other.
            regions: dict[int, dict] = {}
            for ref in info['refs']:
                region = regions.setdefault(ref['ann_id'], dict(mask=ref['mask'], texts=[]))
                region['texts'] += [sentence['phrase'] for sentence in ref['sentences']]
            sizes = {k: info[k] for k in ('height', 'width') if k in info}
            yield dict(
                sizes,
                img_path=info['img_path'],
                name=str(info['image_id']),
                regions=list(regions.values()),
            )

    def _read_annotations(self) -> Iterator[dict]:
        content = load_tables(self.ann_file, 'ann_file', ('images', 'annotations'))
        images = {}
        for i, image in enumerate(content['images']):
            require_keys(image, ('id', 'file_name'), self.ann_file, f'images[{i}]')
            images[str(image['id'])] = (f'images[{i}]', image)
        captions = self._read_captions()
        for i, annotation in enumerate(content['annotations']):
            where = f'annotations[{i}]'
            require_keys(annotation, ('id', 'image_id', 'segmentation'), self.ann_file, where)
            yield self._annotation(annotation, where, images, captions)

    def _annotation(
        self, annotation: dict, where: str, images: dict, captions: dict[str, list[str]] | None
    ) -> dict:
        image_id = annotation['image_id']
        if str(image_id) not in images:
            raise self.fault(f'{where}.image_id', f'image {image_id} is not in the file')
        image_where, image = images[str(image_id)]
        if not annotation['segmentation']:
            raise self.fault(
                f'{where}.segmentation', 'is empty, so there is no region to ask about'
            )
        if captions is None:
            texts = [
                entry['caption']
                for entry in (annotation, image)
                if isinstance(entry.get('caption'), str) and entry['caption'].strip()
            ][:1]
        else:
            texts = captions.get(str(image_id), [])
            if not texts:
                raise self.fault(
                    'annotations',
                    f'has no caption of image_id {image_id}, which {self.ann_file} asks about; the '
                    'two files do not belong together',
                    self.captions_file,
                )
        fields = self.image_fields(image, 'file_name', image_where)
        regions = [dict(mask=annotation['segmentation'], texts=texts)]
        ann_id = annotation['id']
        return dict(fields, name=str(ann_id), regions=regions, image_id=image_id, ann_id=ann_id)

    def _read_captions(self) -> dict[str, list[str]] | None:
        """Captions of every image id; None without a file."""
        if not self.captions_file:
            return None
        content = load_tables(self.captions_file, 'captions_file', ('annotations',))
        groups = rows_by_image(content['annotations'], ('caption',), self.captions_file)
        for where, entry in chain.from_iterable(groups.values()):
            if not isinstance(entry['caption'], str):
                raise AnnotationError(
                    self.captions_file,
                    f'{where}.caption',
                    f'must be a text, got {entry["caption"]!r:.60}',
                )
        return {
            image_id: [entry['caption'].strip() for _, entry in rows]
            for image_id, rows in groups.items()
        }
