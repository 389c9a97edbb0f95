"""Captions of images and regions: METEOR, CIDEr, BLEU and ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pixelsail_mm.evaluation.metrics.base import PixelMetric
from pixelsail_mm.evaluation.metrics.caption_toolkit import build_toolkit
from pixelsail_mm.evaluation.protocols import check_protocol
from pixelsail_mm.registry import METRICS
from pixelsail_mm.tokenization import END_OF_TEXT, SEG_TOKEN

END_TOKENS = (END_OF_TEXT, '<|im_end|>')

_ENDS = re.compile(rf'(?:\s*(?:{"|".join(map(re.escape, END_TOKENS))}))+\s*\Z')
_LABEL = re.compile(r'\A\s*<Prompt\d+>\s*:\s*')
_TAG = re.compile('<.*?>')


def clean_strict(text: str) -> str:
    """Drop the end token and a leading label ``<PromptK>:``; nothing else.

    Example:
        >>> clean_strict('<Prompt0>: A dog: 3.5 kg.<|endoftext|>')
        'A dog: 3.5 kg.'
    """
    return _LABEL.sub('', _ENDS.sub('', text)).strip()


def clean_paper(text: str) -> str:
    """Clean a region caption as the authors' release does before the official metrics.

    Dropped, in this order: the end token, every period, ``<Prompt0>``, every colon, anything in
    angle brackets, ``[SEG]``, surplus blanks, and apostrophes around the text.

    Example:
        >>> clean_paper("<Prompt0>: A dog: 3.5 kg.<|endoftext|>")
        'A dog 35 kg'
    """
    for part in (END_OF_TEXT, '.', '<Prompt0>', ':'):
        text = text.replace(part, '')
    text = _TAG.sub('', text.strip()).replace(SEG_TOKEN, '')
    return ' '.join(text.split()).strip("'").strip()


CLEANING = dict(strict=clean_strict, paper=clean_paper)


def read_references(sample: Mapping[str, Any], name: str) -> list[str]:
    """Give the true texts of a sample, from ``references`` in its metainfo.

    Raises:
        ValueError: There are none, or one is blank or no text; ``name`` is metric and sample.
    """
    texts = sample.get('references')
    texts = [texts] if isinstance(texts, str) else texts
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            f"{name}: metainfo 'references' must list at least one text, none of them "
            f"blank, got {texts!r}; set meta['references'] in the dataset reader"
        )
    return list(texts)


def read_prediction(sample: Mapping[str, Any], name: str) -> str:
    """Give the generated text of a sample; raises ValueError, with ``name``, if there is none."""
    if not isinstance(sample.get('pred_text'), str):
        raise ValueError(f"{name} has no 'pred_text'; the model must run in mode='predict'")
    return sample['pred_text']


@METRICS.register_module()
class CaptionMetric(PixelMetric):
    r"""Generated texts against true ones, by the official COCO caption evaluation.

    With n-grams of PTB tokens without punctuation (see
    :class:`~pixelsail_mm.evaluation.metrics.caption_toolkit.CaptionToolkit`):

    =========  ===================================================================================
    METEOR     ``(1 - 0.6 (chunks / matches)^0.2) P R / (0.85 P + 0.15 R)``, where P and R are the
               weighted shares of matched words (exact, stem, synonym, paraphrase) in prediction
               and reference, all counts summed over the samples; per sample, the best reference
               counts. Version 1.5, Denkowski and Lavie 2014. NLTK's is a different metric.
    CIDEr      10 times the mean over samples, n = 1..4 and references of the cosine of TF-IDF
               vectors, clipped, times ``exp(-(difference of lengths)^2 / 72)``. Vedantam et al.
               2015, variant D. The IDF comes from the references scored: values of different test
               sets or groups do not compare, and a single sample has 0.
    BLEU-n     geometric mean of the clipped precisions of 1..n-grams, of the whole corpus, times
               ``min(1, exp(1 - r / c))`` with the closest reference lengths. Papineni et al. 2002.
    ROUGE-L    mean of ``2.44 P R / (R + 1.44 P)`` with P and R of the longest common subsequence,
               each the largest over the references. Lin and Och 2004.
    empty      share of the samples without any text
    =========  ===================================================================================

    Reads ``pred_text`` and ``references`` (metainfo: one text or several).

    Args:
        metrics: Which of METEOR, CIDEr, BLEU-1 ... BLEU-4 and ROUGE-L.
        protocol: How the prediction is cleaned. ``'strict'``: :func:`clean_strict`; ``'paper'``:
            :func:`clean_paper`, as in the release's evaluation on RefCOCOg, only for comparing
            with published numbers; the results hold ``protocol='paper'`` beside them.
        on_missing: Without ``pycocoevalcap`` or Java: ``'error'`` at construction, or ``'skip'``,
            which leaves the values out and says so once.
        heap: Most memory METEOR may take, in Java's spelling.
        **kwargs: See :class:`PixelMetric`.

    Raises:
        ConfigError: Settings that do not exist, or something is not installed.
        ValueError: In :meth:`process`, naming the sample: no prediction or no reference.
    """

    default_prefix = 'caption'

    def __init__(
        self,
        metrics: str | Sequence[str] = ('METEOR', 'CIDEr'),
        protocol: str = 'strict',
        on_missing: str = 'error',
        heap: str = '2G',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.protocol = check_protocol(protocol, 'CaptionMetric')
        self.toolkit = build_toolkit(metrics, on_missing, type(self).__name__, heap)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the values depend on, for the result file."""
        return dict(
            protocol=self.protocol,
            cleaning=CLEANING[self.protocol].__name__,
            **self.toolkit.settings,
        )

    def score(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cleaned prediction and the references."""
        name = f'CaptionMetric: sample {sample["sample_id"]!r}'
        return dict(
            text=CLEANING[self.protocol](read_prediction(sample, name)),
            references=read_references(sample, name),
        )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """See :meth:`PixelMetric.compute_metrics`; all groups share one Java process."""
        with self.toolkit:
            return super().compute_metrics(results)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Score the texts of the records."""
        texts = [record['text'] for record in records]
        metrics: dict[str, Any] = self.toolkit.compute(
            texts, [record['references'] for record in records]
        )
        metrics['empty'] = sum(not text for text in texts) / len(texts)
        # Last: hooks take the first value for the one to watch.
        return {**metrics, 'protocol': 'paper'} if self.protocol == 'paper' else metrics
