"""PerBench: detailed captions, multiple choice and segmentation in one overall score."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.evaluation.metrics.base import PixelMetric, to_bool_masks
from pixelsail_mm.evaluation.metrics.caption_metric import (
    clean_strict,
    read_prediction,
    read_references,
)
from pixelsail_mm.evaluation.metrics.caption_toolkit import build_toolkit
from pixelsail_mm.evaluation.metrics.multiple_choice_metric import MultipleChoiceMetric
from pixelsail_mm.evaluation.metrics.ref_seg_metric import RefSegMetric
from pixelsail_mm.evaluation.protocols import PROTOCOLS
from pixelsail_mm.registry import METRICS
from pixelsail_mm.tokenization import END_OF_TEXT

CAPTION, CHOICE, SEGMENTATION = TASKS = ('region', 'mcq', 'refseg')


def perbench_overall(meteor: float, accuracy: float, ciou: float, giou: float) -> float:
    """Overall score in percent: mean of METEOR, accuracy and the mean of cIoU and gIoU.

    All arguments are fractions. The formula is not in the authors' release; it gives every
    published row.

    Example:
        >>> round(perbench_overall(0.24, 0.5, 0.3, 0.4), 6)
        36.333333
    """
    return 100 * (meteor + accuracy + (ciou + giou) / 2) / 3


def clean_perbench_paper(text: str) -> str:
    """Clean a caption as the release does for PerBench: the colon of the label stays.

    Example:
        >>> clean_perbench_paper('<Prompt0>: A dog.<|endoftext|>')
        ': A dog.'
    """
    return text.replace(END_OF_TEXT, '').replace('<Prompt0>', '').strip()


def load_meteor_nltk() -> Callable[[str, str], float] | str:
    """Give NLTK's METEOR as the release calls it, or say why that cannot be.

    Texts are split at blanks, and the prediction is handed over as reference, the reference as
    prediction. This is another metric than METEOR 1.5 (0.44 against 0.25 on one pair).

    Returns:
        Function of (prediction, reference), or what is missing.
    """
    if importlib.util.find_spec('nltk') is None:
        return 'the package nltk (pip install nltk)'
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    try:
        wordnet.synsets('red')
    except (LookupError, OSError):
        return (
            'WordNet where NLTK looks for it, corpora/wordnet in a folder of NLTK_DATA (python '
            '-m nltk.downloader wordnet)'
        )
    return lambda prediction, reference: meteor_score(
        [prediction.split()], reference.split(), wordnet=wordnet
    )


@METRICS.register_module()
class PerBenchMetric(PixelMetric):
    """The three tasks of PerBench, by one metric over a test set that holds all of them.

    =============  ===============================================================================
    overall        :func:`perbench_overall`, in percent; the other values are fractions
    METEOR         of the captions (task ``'region'``), version 1.5
    accuracy       of the questions (task ``'mcq'``), with ``chance`` and ``unparsed``; see
                   :class:`MultipleChoiceMetric`
    cIoU, gIoU     of the segmentation (task ``'refseg'``), with ``missing``; see
                   :class:`RefSegMetric`, ``select='paired'``
    retried        share of the segmentation samples that were asked twice
    ..._no_retry   ``overall``, ``cIoU`` and ``gIoU`` if a sample that was asked twice counts as one
                   without masks
    =============  ===============================================================================

    The release asks again, with a forced ``It is [SEG].``, where an answer has no mask. Whether
    that was done stands in the sample: ``retried`` (metainfo or prediction), false by default; the
    masks are then those of the second answer.

    ``protocols`` chooses the values: ``'strict'`` ones have the names above. ``'paper'`` ones are
    only for comparing with the published table and called ``paper/overall`` and so on:

    * ``meteor_nltk`` in place of ``METEOR``: :func:`load_meteor_nltk` of captions cleaned by
      :func:`clean_perbench_paper`, mean over samples. Left out, with a message, without NLTK or
      WordNet.
    * ``accuracy``: the true option's letter or text occurs anywhere in the answer.
    * ``cIoU`` and ``gIoU``: only the first mask is compared with the first target. A sample without
      a mask is left out of cIoU. gIoU is the sum of I / (U + 1e-5) over the number of all targets.
      Its first target is the first of the file: number ``first_in_file`` (metainfo, 0 by default).

    Values that a part of the test set would be needed for are left out, with a message.

    Reads what the three metrics read: ``task``; ``pred_text`` and ``references``, or ``choices``
    and ``answer``; ``pred_masks``, ``gt_masks``, ``retried`` and ``first_in_file``.

    Args:
        protocols: Some of ``'strict'`` and ``'paper'``.
        on_missing: See ``CaptionMetric``; for METEOR 1.5.
        heap: See ``CaptionMetric``.
        **kwargs: See :class:`PixelMetric`, without ``tasks``.

    Raises:
        ConfigError: Settings that do not exist, or something is not installed.
        ValueError: In :meth:`process`, naming the sample; see the three metrics.
    """

    default_prefix = 'perbench'

    def __init__(
        self,
        protocols: str | Sequence[str] = PROTOCOLS,
        on_missing: str = 'error',
        heap: str = '2G',
        **kwargs,
    ) -> None:
        super().__init__(tasks=TASKS, **kwargs)
        self.protocols = (protocols,) if isinstance(protocols, str) else tuple(protocols)
        if not self.protocols or not set(self.protocols) <= set(PROTOCOLS):
            raise ConfigError(
                f'PerBenchMetric: protocols must be some of {PROTOCOLS}, got {protocols!r}'
            )
        self.toolkit = build_toolkit(
            ('METEOR',) if 'strict' in self.protocols else (), on_missing, type(self).__name__, heap
        )
        self._meteor_nltk = load_meteor_nltk() if 'paper' in self.protocols else None
        if isinstance(self._meteor_nltk, str):
            _warn(
                f'paper/meteor_nltk and paper/overall are left out; they need {self._meteor_nltk}'
            )
            self._meteor_nltk = None
        self._choice = {name: MultipleChoiceMetric(protocol=name) for name in PROTOCOLS}
        self._segmentation = RefSegMetric(select='paired', thresholds=())

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the values depend on, for the result file."""
        return dict(
            protocols=list(self.protocols),
            meteor_nltk=self._meteor_nltk is not None,
            **self.toolkit.settings,
        )

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return what either protocol needs of one sample."""
        name, task = f'PerBenchMetric: sample {sample["sample_id"]!r}', sample['task']
        if task == CAPTION:
            return dict(
                task=task,
                text=read_prediction(sample, name),
                references=read_references(sample, name),
            )
        if task == CHOICE:
            return dict(
                task=task,
                **{protocol: metric.score(sample) for protocol, metric in self._choice.items()},
            )
        strict = self._segmentation.score(sample)
        retried = bool(sample.get('retried', False))
        without = {**sample, 'pred_masks': sample['pred_masks'][:0]} if retried else sample
        return dict(
            task=task,
            retried=retried,
            strict=strict,
            paper=first_pair(sample),
            strict_no_retry=self._segmentation.score(without),
            paper_no_retry=first_pair(without),
        )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """See :meth:`PixelMetric.compute_metrics`; says what the test set lacks."""
        lacking = [task for task in TASKS if all(record['task'] != task for record in results)]
        if lacking and results:
            _warn(f'the test set has no sample of task {lacking}, so there is no overall score')
        with self.toolkit:
            return super().compute_metrics(results)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the table above for each protocol."""
        parts = {task: [record for record in records if record['task'] == task] for task in TASKS}
        metrics: dict[str, float] = {}
        if 'strict' in self.protocols:
            metrics.update(_with_overall(self._strict(parts), 'METEOR'))
        if 'paper' in self.protocols:
            values = _with_overall(self._paper(parts), 'meteor_nltk')
            metrics.update({f'paper/{name}': value for name, value in values.items()})
        return metrics

    def _strict(self, parts: dict[str, list[dict]]) -> dict[str, float]:
        values: dict[str, float] = {}
        if parts[CAPTION]:
            values.update(
                self.toolkit.compute(
                    [clean_strict(record['text']) for record in parts[CAPTION]],
                    [record['references'] for record in parts[CAPTION]],
                )
            )
        if parts[CHOICE]:
            values.update(
                self._choice['strict'].summarise([record['strict'] for record in parts[CHOICE]])
            )
        if records := parts[SEGMENTATION]:
            found, without = (
                self._segmentation.summarise([record[key] for record in records])
                for key in ('strict', 'strict_no_retry')
            )
            values.update({key: found[key] for key in ('cIoU', 'gIoU', 'missing') if key in found})
            values.update(
                retried=sum(record['retried'] for record in records) / len(records),
                cIoU_no_retry=without['cIoU'],
                gIoU_no_retry=without['gIoU'],
            )
        return values

    def _paper(self, parts: dict[str, list[dict]]) -> dict[str, float]:
        values: dict[str, float] = {}
        if parts[CAPTION] and self._meteor_nltk is not None:
            scores = [
                self._meteor_nltk(clean_perbench_paper(record['text']), record['references'][0])
                for record in parts[CAPTION]
            ]
            values['meteor_nltk'] = sum(scores) / len(scores)
        if parts[CHOICE]:
            values['accuracy'] = self._choice['paper'].summarise(
                [record['paper'] for record in parts[CHOICE]]
            )['accuracy']
        if parts[SEGMENTATION]:
            for key, end in (('paper', ''), ('paper_no_retry', '_no_retry')):
                ciou, giou = iou_of_first_pairs([record[key] for record in parts[SEGMENTATION]])
                values.update({f'cIoU{end}': ciou, f'gIoU{end}': giou})
        return values


def first_pair(sample: Mapping[str, Any]) -> dict[str, int | bool]:
    """Pixels of the first predicted mask and of the target that is first in the file.

    Returns:
        dict with ``inter``, ``union``, ``given`` (there is a predicted mask) and ``targets`` (their
        number).
    """
    gt, pred = (to_bool_masks(sample[key], key) for key in ('gt_masks', 'pred_masks'))
    first = sample.get('first_in_file', 0)
    pairs = list(zip(pred[:1], gt[first : first + 1]))
    return dict(
        inter=sum(int((p & t).sum()) for p, t in pairs),
        union=sum(int((p | t).sum()) for p, t in pairs),
        given=len(pred) > 0,
        targets=len(gt),
    )


def iou_of_first_pairs(records: Sequence[Mapping[str, int | bool]]) -> tuple[float, float]:
    """Compute cIoU and gIoU of PerBench as the release does.

    Args:
        records: What :func:`first_pair` gives.

    Returns:
        ``sum I / (sum U + 1e-10)`` over the samples with a mask, and ``sum of I / (U + 1e-5)`` (1
        if U is 0, 0 without a mask) over the number of targets of all samples.
    """
    given = [record for record in records if record['given']]
    inter, union = (sum(record[key] for record in given) for key in ('inter', 'union'))
    ious = sum(
        record['inter'] / (record['union'] + 1e-5) if record['union'] else 1.0 for record in given
    )
    targets = sum(record['targets'] for record in records)
    return inter / (union + 1e-10), ious / targets if targets else 0.0


def _with_overall(values: dict[str, float], meteor: str) -> dict[str, float]:
    """Put the overall scores in front, if their parts are there."""
    overall = {}
    if all(key in values for key in (meteor, 'accuracy', 'cIoU')):
        for end in ('', '_no_retry'):
            overall[f'overall{end}'] = perbench_overall(
                values[meteor], values['accuracy'], values[f'cIoU{end}'], values[f'gIoU{end}']
            )
    return {**overall, **values}


def _warn(message: str) -> None:
    print_log(f'PerBenchMetric: {message}', logger='current', level=logging.WARNING)
