"""Base of the metrics: choice of samples, exact collection over processes, groups."""

from __future__ import annotations

import sys
import zlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric


class PixelMetric(BaseMetric):
    """Base of the metrics: one small record per sample, each sample counted once.

    A subclass gives :meth:`score` (sample -> plain numbers) and :meth:`summarise` (all records ->
    named values). Samplers repeat samples so that every process gets equally many; those repeats
    are recognised by ``(dataset, sample_id)`` and dropped. :meth:`summarise` gets the records in
    order of these keys, so that no sum of floats depends on which process scored what, and when.

    Args:
        tasks: Score only samples whose metainfo ``task`` is one of these; ``None`` scores all.
            Lets several metrics share one test set of mixed tasks.
        group_by: Metainfo key by whose value results are broken down in addition, e.g.
            ``'expression_kind'`` gives ``cIoU`` and ``left_of/cIoU``. Samples without the key
            count in the overall value only.
        **kwargs: ``collect_device``, ``prefix`` and ``collect_dir`` of
            :class:`mmengine.evaluator.BaseMetric`.
    """

    #: Whether samples of the test set could not be read; set by the validation loop.
    incomplete = False

    def __init__(
        self, tasks: Sequence[str] | None = None, group_by: str | None = None, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.tasks = (
            None if tasks is None else frozenset([tasks] if isinstance(tasks, str) else tasks)
        )
        self.group_by = group_by

    @abstractmethod
    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Reduce one sample to plain Python values; they travel between processes."""

    @abstractmethod
    def summarise(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Turn the records of distinct samples (at least one), in order of keys, into values."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score the samples of one batch.

        Args:
            data_batch: Unused.
            data_samples: Predicted samples as dicts (metainfo and data in one, as
                :class:`mmengine.evaluator.Evaluator` passes them).
        """
        for sample in data_samples:
            if self.tasks is not None and sample.get('task') not in self.tasks:
                continue
            if not sample.get('sample_id'):
                raise ValueError(
                    f"{type(self).__name__}: a data sample has no 'sample_id' in its metainfo; "
                    "set meta['sample_id'] in the dataset reader, unique within the dataset"
                )
            group = None if self.group_by is None else sample.get(self.group_by)
            self.results.append(
                dict(
                    key=(str(sample.get('dataset', '')), str(sample['sample_id'])),
                    target=_fingerprint(sample),
                    group=group,
                    **self.score(sample),
                )
            )

    def evaluate(self, size: int) -> dict[str, float]:
        """Collect the records of all processes and compute the values.

        MMEngine drops repeats by cutting the collected list to ``size``, which is right only for
        an interleaving sampler; here repeats are dropped by sample id, so nothing is cut.

        Args:
            size: Length of the test set. Unused.
        """
        return super().evaluate(size=sys.maxsize)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Drop repeated samples, put the rest in order, summarise all and those of each group.

        Raises:
            ValueError: No sample was scored although all could be read, or two different samples
                share one id.
        """
        records = _distinct(results, type(self).__name__)
        if not records and self.incomplete:
            return {}
        if not records:
            only = '' if self.tasks is None else f' of task {sorted(self.tasks)}'
            raise ValueError(
                f'{type(self).__name__}: the test set has no sample{only}; correct '
                "the metric's `tasks` or the test dataset"
            )
        metrics = self.summarise(records)
        groups = defaultdict(list)
        for record in records:
            if record['group'] is not None:
                groups[str(record['group'])].append(record)
        for group in sorted(groups):
            metrics.update(
                {f'{group}/{name}': value for name, value in self.summarise(groups[group]).items()}
            )
        return metrics


def _distinct(results: list[dict], metric: str) -> list[dict]:
    """One record of each key, in order of keys; refuse keys shared by different samples."""
    kept: dict[tuple, dict] = {}
    for record in results:
        first = kept.setdefault(record['key'], record)
        if first['target'] != record['target']:
            dataset, sample_id = record['key']
            raise ValueError(
                f'{metric}: sample_id {sample_id!r} of dataset {dataset!r} names two different '
                'samples; give every sample (image and expression) an id of its own in the reader'
            )
    return [kept[key] for key in sorted(kept)]


def _fingerprint(sample: Mapping[str, Any]) -> int:
    """Checksum of question and true answer, which is the same for a sample and its repeat."""
    text = repr([str(sample.get(key)) for key in ('question', 'answer', 'gt_text')])
    checksum = zlib.crc32(text.encode())
    masks = sample.get('gt_masks')
    if masks is None:
        return checksum
    bits = np.packbits(to_bool_masks(masks, 'gt_masks'))
    return zlib.crc32(bits.tobytes(), checksum)


def read_masks(sample: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true masks of a sample, bool ``(m, H, W)`` and ``(n, H, W)``.

    Raises:
        ValueError: They are not masks of one size; ``name`` is metric and sample.
    """
    pred, gt = (to_bool_masks(sample[key], f'{name}: {key}') for key in ('pred_masks', 'gt_masks'))
    if pred.shape[1:] != gt.shape[1:]:
        raise ValueError(
            f'{name}: predicted masks are {pred.shape[1:]}, true masks {gt.shape[1:]}; both must '
            'have the size of the original image'
        )
    return pred, gt


def to_bool_masks(masks: Any, name: str) -> np.ndarray:
    """Return ``masks`` as a boolean ``(n, H, W)`` array; anything above 0 is foreground.

    Binarising matters: summed polygons hold 2 where they overlap, and the authors' two-bin
    histogram loses those pixels from intersection and union alike.

    Args:
        masks: Tensor or array of shape ``(n, H, W)``, bool or number.
        name: Name used in the error.

    Raises:
        ValueError: The shape is not ``(n, H, W)``.
    """
    if hasattr(masks, 'detach'):
        masks = masks.detach().cpu().numpy()
    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise ValueError(f'{name} must have shape (n, H, W), got {masks.shape}')
    return masks > 0
