"""Answering single questions of a benchmark, the same way for every kit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import nn

from pixelsail_mm.apis.inferencer import PixelSAILInferencer
from pixelsail_mm.apis.inputs import ImageInput, make_record
from pixelsail_mm.datasets.files.pictures import IGNORE
from pixelsail_mm.errors import BadSampleError, UserError
from pixelsail_mm.notices import CountedWarnings

# Longest answer in the authors' release.
MAX_NEW_TOKENS = 512
PROMPTS = ('pixel_sail', 'kit')


class KitError(UserError, ImportError):
    """An evaluation kit is not installed, or its version is unknown."""


class UnsupportedItemError(BadSampleError, RuntimeError):
    """An item of a benchmark that the model cannot be asked, e.g. one with two images.

    Also a ``RuntimeError``, which VLMEvalKit notes as a failed answer when ``SKIP_ERR=1`` is set.
    """


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Args:
        name: Benchmark and item, for error messages.
        text: What is asked.
        images: Its images, as the kit gives them; none for a text-only item.
        max_new_tokens: Longest answer.
        stops: Texts before which the answer ends.
    """

    name: str
    text: str
    images: Sequence[ImageInput] = ()
    max_new_tokens: int = MAX_NEW_TOKENS
    stops: tuple[str, ...] = ()


class VQAAnswerer:
    """Ask a model the questions of a benchmark: image first, greedy, end tokens removed.

    Pictures keep their stored pixels, whatever their EXIF data say: one kit gives files, another
    gives opened pictures, and both must ask the same. Warnings are counted by kind; the 1st, 10th,
    100th, ... is logged.

    Args:
        model: See :class:`~pixelsail_mm.apis.PixelSAILInferencer`.
        weights: Checkpoint; a folder's own weights by default.
        device: Device; the best available one by default.
    """

    def __init__(
        self,
        model: str | os.PathLike | Mapping | Config | nn.Module,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
    ) -> None:
        self.ask = PixelSAILInferencer(model, weights, device, exif=IGNORE)
        self.ask.say = CountedWarnings()
        # Benchmarks are answered greedily whatever the config samples with.
        self.model.generation = dict(self.model.generation, do_sample=False)

    @property
    def model(self) -> nn.Module:
        """The model that is asked."""
        return self.ask.model

    def __call__(self, questions: Sequence[Question], batch_size: int = 1) -> list[str]:
        """Answer questions.

        Args:
            questions: The questions.
            batch_size: Questions answered together; only neighbours with one ``max_new_tokens``.

        Returns:
            The answers in the order of the questions.

        Raises:
            UnsupportedItemError: A question has more than one image.
            BadSampleError: A question or an image is unusable.
        """
        answers: list[str] = []
        for limit, group in groupby(questions, key=lambda question: question.max_new_tokens):
            members = list(group)
            results = self.ask(
                [_only_image(question) for question in members],
                [question.text for question in members],
                max_new_tokens=limit,
                batch_size=batch_size,
            )
            answers += [
                _cut(result['text'], question.stops) for result, question in zip(results, members)
            ]
        return answers

    @torch.no_grad()
    def score(self, question: Question, answer: str) -> tuple[float, bool]:
        """Compute the likelihood of a given answer.

        All answers to one question see the picture at one size, that of the question alone. What
        is changed about the question is logged.

        Args:
            question: The question.
            answer: The answer; blanks around it are removed, as in training.

        Returns:
            Mean cross entropy per token of the answer, and whether it is the greedy one.

        Raises:
            UnsupportedItemError: The question has more than one image.
            BadSampleError: Question, answer or image is unusable.
        """
        if not answer.strip():
            raise BadSampleError(question.name, 'answer', 'there is no text to score')
        record = make_record(
            question.name,
            _only_image(question),
            question.text,
            exif=self.ask.exif,
            max_pixels=self.ask.pipeline.max_pixels,
        )
        batch = pseudo_collate([self.ask.pipeline.with_answer(record, answer.strip())])
        for text in record['meta']['warnings']:
            self.ask.say(text)
        inputs = self.model.data_preprocessor(batch, False)['inputs']
        targets = inputs['labels'][0, 1:]
        labelled = targets != -100
        logits = self.model.backbone.logits(self.model.encode(inputs)[0, :-1][labelled]).float()
        targets = targets[labelled]
        return (F.cross_entropy(logits, targets).item(), bool((logits.argmax(-1) == targets).all()))


def _only_image(question: Question) -> ImageInput:
    if len(question.images) > 1:
        raise UnsupportedItemError(
            question.name,
            'images',
            f'{len(question.images)} images in one question, but the '
            'model reads one; leave out this benchmark, or its items with several images',
        )
    return question.images[0] if len(question.images) else None


def _cut(text: str, stops: Sequence[str]) -> str:
    """Text before the first of the stops."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)].strip() if ends else text


def checked_limit(max_new_tokens: Any) -> int:
    """Setting ``max_new_tokens`` of a kit's command line as a number.

    Raises:
        ValueError: It is not a whole number of at least 1.
    """
    try:
        limit = int(max_new_tokens)
    except (TypeError, ValueError):
        limit = 0
    if limit < 1:
        raise ValueError(
            f'max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}'
        )
    return limit


def checked_prompts(prompts: str) -> str:
    """Setting ``prompts`` of a kit's command line.

    Raises:
        ValueError: Unknown setting.
    """
    if prompts not in PROMPTS:
        raise ValueError(f'prompts={prompts!r}: use one of {list(PROMPTS)}')
    return prompts
