"""Reader of generalised referring segmentation: several targets, or none, for one expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixelsail_mm.datasets.files.annotation_files import iter_json_list
from pixelsail_mm.datasets.readers.refcoco import RefCOCODataset
from pixelsail_mm.datasets.sample_source import Record
from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.errors import AnnotationError, BadSampleError, ConfigError
from pixelsail_mm.registry import DATASETS

# The only entry of ``ann_id`` of a reference without target.
NO_TARGET = -1


@DATASETS.register_module()
class GRefCOCODataset(RefCOCODataset):
    """gRefCOCO: like RefCOCO, but a reference has a list of annotations.

    The annotations of a reference are one target, the union of their masks. ``[-1]`` means that
    nothing in the image is meant; the answer is then ``No target [SEG].`` with an empty mask,
    which is trained as well (authors' release). A reference whose ``ann_id`` is not such a list is
    counted and left out, in test mode raised.

    Test mode follows the authors' evaluation: crowd annotations do not belong to the target (they
    do in training), and the text asked for is the file's own normalised one (``sent``; ``raw``
    where it is missing). ``meta['no_target']`` says that no annotation belongs to the target.

    Args:
        split_file: ``grefs(unc).json`` or ``grefs(unc).p``.
        no_target_answers: Template list (name or strings) of the answers to expressions without
            target, with one ``[SEG]`` each.
        paper: Freeze one sentence per reference when the dataset is built, as in the release; in
            training only, for its evaluation asks all sentences. No reference is lost, unlike in
            RefCOCO: lists of annotations are no keys under which they could collapse.
        **kwargs: See :class:`RefCOCODataset`.

    Raises:
        ConfigError: ``with_boxes`` is set.
    """

    def __init__(
        self,
        split_file: str = 'grefs(unc).json',
        no_target_answers: str | Sequence[str] = 'no_target_answers',
        **kwargs,
    ) -> None:
        if kwargs.get('with_boxes'):
            raise ConfigError(
                'GRefCOCODataset: with_boxes=True needs one annotation for each '
                'expression, and here there are several or none; remove it'
            )
        self.no_target_answers = load_templates(no_target_answers)
        super().__init__(split_file=split_file, **kwargs)

    def _load_refs(self) -> Any:
        if self.split_file.lower().endswith('.json'):
            return list(iter_json_list(self.split_file, 'split_file'))
        return super()._load_refs()

    def _parse_ref(self, ref: dict, i: int, annotations: dict) -> dict | None:
        try:
            parsed = super()._parse_ref(ref, i, annotations)
        except AnnotationError:
            raise
        except BadSampleError as error:
            if self.test_mode:
                raise
            self._skip(error)
            return None
        return None if parsed is None else dict(parsed, no_target=not parsed['mask'])

    def _target(self, ref: dict, i: int, annotations: dict) -> Any:
        """Union of the annotations' masks; an empty list if there is no target."""
        ids, key = ref['ann_id'], f'refs[{i}].ann_id'
        known = isinstance(ids, (list, tuple)) and ids and all(isinstance(k, int) for k in ids)
        if not known or (NO_TARGET in ids and len(ids) > 1):
            raise self.fault(
                key,
                f'must be a list of annotation ids or [{NO_TARGET}] (no target), got {ids!r:.60}; '
                'files of RefCOCO are read with RefCOCODataset',
                self.split_file,
            )
        if ids[0] == NO_TARGET:
            return []
        missing = [k for k in ids if k not in annotations]
        if missing:
            raise self._refuse(
                key,
                f'annotations {missing} are not in {self.ann_file}; the two files do not belong '
                'together',
            )
        parts = [
            annotations[k]['segmentation'] or []
            for k in ids
            if not (self.test_mode and annotations[k].get('iscrowd'))
        ]
        return dict(union=parts) if parts else []

    def _collapse(self, refs: list[dict]) -> list[dict]:
        return self._freeze(refs)

    def _answers_to(self, ref: dict) -> list[str]:
        return self.no_target_answers if ref['no_target'] else self.answers

    def _test_record(self, info: dict) -> Record:
        record = super()._test_record(info)
        record['meta']['no_target'] = info['refs'][0]['no_target']
        return record
