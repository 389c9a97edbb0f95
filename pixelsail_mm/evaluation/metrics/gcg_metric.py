"""Grounded caption generation: masks, phrases and the caption around them."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelsail_mm.datasets.files.masks import mask_to_rle
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.evaluation.metrics.base import PixelMetric, read_masks
from pixelsail_mm.evaluation.metrics.caption_metric import END_TOKENS, read_prediction
from pixelsail_mm.evaluation.metrics.caption_toolkit import build_toolkit
from pixelsail_mm.evaluation.metrics.text_similarity import TokenF1
from pixelsail_mm.evaluation.protocols import check_protocol
from pixelsail_mm.registry import FUNCTIONS, METRICS
from pixelsail_mm.tokenization import SEG_TOKEN

_PHRASE = re.compile(r'<p>(.*?)</p>', re.DOTALL)
_PHRASE_OR_MASK = re.compile(rf'<p>(.*?)</p>|{re.escape(SEG_TOKEN)}', re.DOTALL)
_OWN_TOKENS = re.compile('|'.join(map(re.escape, (*END_TOKENS, '<p>', '</p>', SEG_TOKEN))))
_TAG = re.compile('<.*?>')


def plain_caption(text: str, protocol: str = 'strict') -> str:
    """Caption without phrase tags, ``[SEG]``, end token and surplus blanks.

    Args:
        text: The answer.
        protocol: ``'paper'`` joins words across line ends, drops everything in angle brackets and
            apostrophes around the caption, as the authors' release does.

    Example:
        >>> plain_caption('<p> A dog </p> [SEG] runs.')
        'A dog runs.'
    """
    if protocol == 'paper':
        text = _TAG.sub('', text.replace('\n', '')).replace(SEG_TOKEN, '')
        return ' '.join(text.split()).strip("'").strip()
    return ' '.join(_OWN_TOKENS.sub(' ', text).split())


def find_phrases(text: str, protocol: str = 'strict') -> list[str]:
    """Texts between ``<p>`` and ``</p>``, in their order, without surplus blanks."""
    if protocol == 'paper':
        text = text.replace('\n', '')
    return [' '.join(phrase.replace(SEG_TOKEN, ' ').split()) for phrase in _PHRASE.findall(text)]


def phrases_of_masks(text: str, count: int) -> list[str | None]:
    """Phrase of each of ``count`` masks: the one that the mask's ``[SEG]`` follows.

    A ``[SEG]`` has no phrase if another one stands between, or if it is inside of ``<p> </p>``.

    Example:
        >>> phrases_of_masks('<p> dogs </p> [SEG] [SEG] <p> cat </p> sits [SEG]', 3)
        ['dogs', None, 'cat']
    """
    owners: list[str | None] = []
    phrase = None
    for found in _PHRASE_OR_MASK.finditer(text):
        if found.group(1) is None:
            owners.append(phrase)
            phrase = None
        else:
            owners += [None] * found.group(1).count(SEG_TOKEN)
            (phrase,) = find_phrases(found.group())
    return (owners + [None] * count)[:count]


def mask_ap(images: Sequence[tuple[list[dict], list[dict]]]) -> dict[str, float]:
    """COCO's average precision of masks that all have the score 1.

    The order of detections decides between equal scores, so it depends on the order of images.

    Args:
        images: (true masks, predicted masks) of every image, as compressed run lengths.

    Returns:
        ``AP50`` and ``AP``, the mean over IoU 0.5, 0.55, ... 0.95; nothing without a true mask.
    """
    truth, found = COCO(), COCO()
    sizes = [
        next(iter([*true, *predicted]), dict(size=(0, 0)))['size'] for true, predicted in images
    ]
    for coco, side in ((truth, 0), (found, 1)):
        masks = [(i, mask) for i, image in enumerate(images) for mask in image[side]]
        coco.dataset = dict(
            images=[dict(id=i, height=size[0], width=size[1]) for i, size in enumerate(sizes)],
            categories=[dict(id=1)],
            # COCOeval takes id 0 for "no match".
            annotations=[
                dict(
                    id=number,
                    image_id=i,
                    category_id=1,
                    segmentation=mask,
                    score=1.0,
                    area=float(coco_mask.area(mask)),
                    iscrowd=0,
                )
                for number, (i, mask) in enumerate(masks, 1)
            ],
        )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, 'segm')
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision']
    if not (precision > -1).any():
        return {}
    return dict(AP50=float(precision[0].mean()), AP=float(precision.mean()))


def mean_iou(ious: np.ndarray) -> float:
    """Mean IoU of an image, strict: the best one-to-one pairs, every mask left over counts as 0.

    ``max over pairings of (sum of IoU) / max(number of true, number of predicted masks)``; 1 if
    there are none of either.

    Args:
        ious: (true, predicted) masks.
    """
    if not max(ious.shape):
        return 1.0
    return float(_sum_of_best_pairs(ious) / max(ious.shape))


def _sum_of_best_pairs(values: np.ndarray) -> float:
    """Largest sum of a one-to-one pairing of rows and columns."""
    from scipy.optimize import linear_sum_assignment  # takes a second, which others need not wait

    return values[linear_sum_assignment(values, maximize=True)].sum()


def mean_iou_paper(ious: np.ndarray) -> float:
    """Mean IoU of an image as the release computes it: masks without a partner do not count.

    The largest IoU is taken, its row and column removed, and so on while it is above 0; the mean
    of what was taken, 0 if nothing was.

    Args:
        ious: (true, predicted) masks.
    """
    rest, taken = ious.T.copy(), []
    while rest.size and rest.max() > 0:
        best = np.unravel_index(rest.argmax(), rest.shape)
        taken.append(rest[best])
        rest[best[0]] = rest[:, best[1]] = 0
    return float(np.mean(taken)) if taken else 0.0


@METRICS.register_module()
class GCGMetric(PixelMetric):
    """Grounded captions: masks, phrases, and the two together.

    ======================  ======================================================================
    AP50, AP                :func:`mask_ap`
    mIoU                    mean over images of :func:`mean_iou`
    recall_<similarity>     share of the true phrases that are found: a predicted mask has
                            IoU >= 0.5 with theirs and its phrase a similarity >= 0.5
    METEOR, CIDEr           of the caption, see
                            :class:`~pixelsail_mm.evaluation.metrics.caption_metric.CaptionMetric`
    mismatched              number of answers with more or fewer phrases than masks
    phrases_without_mask    number of phrases that no ``[SEG]`` follows
    masks_without_phrase    number of masks whose ``[SEG]`` follows no phrase
    ======================  ======================================================================

    The i-th ``[SEG]`` of an answer is the i-th predicted mask. ``'strict'``: a mask belongs to the
    phrase in front of its ``[SEG]``, and as many true phrases as possible get a partner of their
    own. A true or predicted mask without a pixel has IoU 0 with everything.

    ``protocol='paper'`` does what the authors' release does (and GLaMM's, from which it comes);
    its results hold ``protocol='paper'`` beside the numbers:

    * mIoU is the mean over images of :func:`mean_iou_paper`.
    * The i-th phrase belongs to the i-th mask. Recall takes pairs by falling IoU and stops at the
      first one that is not similar enough. An image where a mask has no phrase, so that the
      release fails and goes on, has nothing found.
    * The caption is cleaned by :func:`plain_caption` for this protocol.
    * Not reproduced: IoU of two empty masks is not a number in the release.

    Published recall is of BERT. The default similarity needs no download and gives other values,
    which is why its name is part of the metric's.

    Reads ``pred_text``, ``pred_masks`` and ``gt_masks`` ``(n, H, W)`` and, from the metainfo,
    ``phrases`` (of the true masks), ``caption``, ``image_id`` and, where an image has several
    captions, ``references``.

    Args:
        similarity: Similarity of phrases: ``dict(type='token_f1')`` (default),
            ``dict(type='bert_cosine', path=...)``, the config of another class registered in
            ``FUNCTIONS``, or an object. It is called with two texts and gives a number; its
            attribute ``name`` is its name in the results.
        iou_threshold: Least IoU of a found phrase.
        similarity_threshold: Least similarity of a found phrase.
        caption_metrics: See ``CaptionMetric.metrics``; empty for none.
        protocol: ``'strict'`` or, only for comparing with published numbers, ``'paper'``.
        on_missing: See ``CaptionMetric``.
        heap: See ``CaptionMetric``.
        **kwargs: See :class:`PixelMetric`.

    Raises:
        ConfigError: Settings that do not exist, or something is not installed.
        ValueError: In :meth:`process`, naming the sample: masks of different sizes, another number
            of true phrases than true masks, no prediction.
        KeyError: In :meth:`process`: something that is read is missing.
    """

    default_prefix = 'gcg'

    def __init__(
        self,
        similarity: Mapping | Callable[[str, str], float] | None = None,
        iou_threshold: float = 0.5,
        similarity_threshold: float = 0.5,
        caption_metrics: Sequence[str] = ('METEOR', 'CIDEr'),
        protocol: str = 'strict',
        on_missing: str = 'error',
        heap: str = '2G',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < iou_threshold <= 1:
            raise ConfigError(
                f'GCGMetric: iou_threshold must be above 0 and at most 1, got {iou_threshold}'
            )
        self.protocol = check_protocol(protocol, 'GCGMetric')
        self.iou_threshold = iou_threshold
        self.similarity_threshold = similarity_threshold
        if similarity is None or callable(similarity):
            self.similarity = similarity or TokenF1()
        else:
            self.similarity = FUNCTIONS.build(similarity)
        self.similarity_name = getattr(self.similarity, 'name', type(self.similarity).__name__)
        self.toolkit = build_toolkit(caption_metrics, on_missing, type(self).__name__, heap)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the values depend on, for the result file."""
        return dict(
            protocol=self.protocol,
            similarity=self.similarity_name,
            iou_threshold=self.iou_threshold,
            similarity_threshold=self.similarity_threshold,
            **self.toolkit.settings,
        )

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return texts, run lengths of the masks and their IoU."""
        name = f'GCGMetric: sample {sample["sample_id"]!r}'
        for key in ('pred_masks', 'gt_masks', 'phrases', 'caption', 'image_id'):
            if sample.get(key) is None:
                raise KeyError(
                    f'{name} has no {key!r}; the reader must be in test mode, the '
                    'pipeline must load the true masks, the model must run in '
                    "mode='predict'. Other tasks in the same test set are left out "
                    "with `tasks=['gcg']`"
                )
        text = read_prediction(sample, name)
        predicted, true = read_masks(sample, name)
        if len(sample['phrases']) != len(true):
            raise ValueError(
                f'{name} has {len(sample["phrases"])} true phrases but {len(true)} '
                'true masks; the reader must give one mask for each phrase'
            )
        codes = dict(
            true=[mask_to_rle(mask) for mask in true],
            predicted=[mask_to_rle(mask) for mask in predicted],
        )
        return dict(
            image_id=sample['image_id'],
            caption=plain_caption(text, self.protocol),
            references=list(sample.get('references') or [sample['caption']]),
            true_phrases=list(sample['phrases']),
            phrases=find_phrases(text, self.protocol),
            owners=phrases_of_masks(text, len(predicted)),
            ious=_ious(codes['true'], codes['predicted']).tolist(),
            **codes,
        )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """See :meth:`PixelMetric.compute_metrics`; all groups share one Java process."""
        with self.toolkit:
            return super().compute_metrics(results)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Compute the table above."""
        records = sorted(records, key=_image_order)
        paper = self.protocol == 'paper'
        metrics: dict[str, Any] = mask_ap(
            [(record['true'], record['predicted']) for record in records]
        )
        ious = [_matrix(record) for record in records]
        metrics['mIoU'] = float(
            np.mean([(mean_iou_paper if paper else mean_iou)(matrix) for matrix in ious])
        )
        wanted = sum(len(record['true_phrases']) for record in records)
        if wanted:
            count = self._found_paper if paper else self._found
            metrics[f'recall_{self.similarity_name}'] = sum(map(count, records, ious)) / wanted
        metrics.update(
            self.toolkit.compute(
                [record['caption'] for record in records],
                [record['references'] for record in records],
            )
        )
        metrics.update(_mismatches(records))
        # Last: hooks take the first value for the one to watch.
        return {**metrics, 'protocol': 'paper'} if paper else metrics

    def _found(self, record: dict, ious: np.ndarray) -> int:
        """Most true phrases that can be given a fitting prediction of their own."""
        fits = np.zeros(ious.shape, int)
        for i, j in np.argwhere(ious >= self.iou_threshold):
            phrase = record['owners'][j]
            fits[i, j] = phrase is not None and self._similar(record['true_phrases'][i], phrase)
        return int(_sum_of_best_pairs(fits))

    def _found_paper(self, record: dict, ious: np.ndarray) -> int:
        """True phrases that the release finds, see the class."""
        rest, found = ious.copy(), 0
        while rest.size and rest.max() >= self.iou_threshold:
            i, j = np.unravel_index(rest.argmax(), rest.shape)
            if j >= len(record['phrases']):
                return 0
            if not self._similar(record['true_phrases'][i], record['phrases'][j]):
                break
            found += 1
            rest[i] = rest[:, j] = 0
        return found

    def _similar(self, true: str, phrase: str) -> bool:
        return self.similarity(true, phrase) >= self.similarity_threshold


def _ious(true: list[dict], predicted: list[dict]) -> np.ndarray:
    """IoU of every pair, (true, predicted); 0 if both are empty."""
    if not true or not predicted:
        return np.zeros((len(true), len(predicted)))
    return np.asarray(coco_mask.iou(predicted, true, [0] * len(true))).T


def _matrix(record: dict) -> np.ndarray:
    return np.array(record['ious'], float).reshape(len(record['true']), len(record['predicted']))


def _image_order(record: dict) -> tuple:
    """Order of COCO's evaluation, by image id; numbers before texts."""
    image_id = record['image_id']
    if isinstance(image_id, int):
        return record['key'][0], 0, image_id, '', record['key'][1]
    return record['key'][0], 1, 0, str(image_id), record['key'][1]


def _mismatches(records: list[dict]) -> dict[str, int]:
    owned = [sum(owner is not None for owner in record['owners']) for record in records]
    return dict(
        mismatched=sum(len(record['phrases']) != len(record['owners']) for record in records),
        phrases_without_mask=sum(
            len(record['phrases']) - number for record, number in zip(records, owned)
        ),
        masks_without_phrase=sum(
            len(record['owners']) - number for record, number in zip(records, owned)
        ),
    )
