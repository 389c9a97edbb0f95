"""Run a config's transforms on a user's input and say what they changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pixelsail_mm.datasets.files.pictures import MAX_PIXELS
from pixelsail_mm.datasets.transforms import BuildConversation, LoadImage, ResizeToGrid

_SHOWN_WORDS = 12


class InputPipeline:
    """Run the transforms of a test pipeline on one record of a user.

    A data set states its images and its questions; a user asks about any photo in any words. So a
    picture that leaves no room for the question within ``max_length`` is scaled down here, where a
    data set's is refused, and whatever makes the model read something else than was given is added
    to ``meta['warnings']``: a picture scaled down, earlier turns left out, words that are
    not among those of the training samples that were read (``trained_tokens``).

    Args:
        stages: Built transforms, in order.
    """

    def __init__(self, stages: Sequence[Callable]) -> None:
        self.stages = list(stages)
        self._resize = _first(self.stages, ResizeToGrid)
        self._conversation = _first(self.stages, BuildConversation)
        load = _first(self.stages, LoadImage)
        #: Largest picture that may be decoded, in pixels.
        self.max_pixels: float = load.max_pixels if load else MAX_PIXELS

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Run all stages on a record of :func:`~pixelsail_mm.apis.inputs.make_record`; changes it.

        Raises:
            BadSampleError: An input is unusable; names it.
        """
        results = record
        for stage in self.stages:
            if stage is self._resize and results['img'] is not None:
                bound = self._fitting_size(results)
                results = stage(results | dict(max_size=bound))
                self._note_scaling(results)
            else:
                results = stage(results)
            if stage is self._conversation:
                self._note_text(results)
        return results

    def with_answer(self, record: dict[str, Any], answer: str) -> dict[str, Any]:
        """Run all stages, and put a given answer behind the question.

        Answers to one question are compared: they all get the same picture and history, as when
        the model answers, and like an answer of its own may reach beyond ``max_length``.

        The record has no ``answer_prefix``.

        Returns:
            What the last stage gives; the answer is in ``input_ids`` and ``labels``.

        Raises:
            BadSampleError: An input is unusable; names it.
        """
        answered = record | dict(answer_prefix=answer)
        ids = torch.tensor(self._conversation.answer_ids(record, answer), dtype=torch.long)
        asked = self._conversation.unseen_words(record)
        self._note_words(
            record,
            [word for word in self._conversation.unseen_words(answered) if word not in asked],
        )
        sample = self(record)
        for key in ('input_ids', 'labels'):
            sample['inputs'][key] = torch.cat([sample['inputs'][key], ids])
        return sample

    def _fitting_size(self, results: dict) -> int:
        """Largest ``max_size`` at which the image and the last turn fit into ``max_length``."""
        resize, talk = self._resize, self._conversation
        bound = resize.max_size
        if talk is not None:
            room = talk.image_room(results)
            while (
                bound - resize.patch_size >= resize.patch_size
                and talk.image_length(resize.grid(*results['ori_shape'], bound)) > room
            ):
                bound -= resize.patch_size
        return bound

    def _note_scaling(self, results: dict) -> None:
        height, width = results['ori_shape']
        new_height, new_width = results['image'].shape[1:]
        no_room = results['max_size'] < self._resize.max_size
        if new_height >= height and new_width >= width and not no_room:
            return
        reason = (
            f'this model reads pictures of up to {self._resize.max_size} pixels '
            '(max_size of ResizeToGrid)'
        )
        if no_room:
            reason = (
                'a larger one and the question do not fit into max_length='
                f'{self._conversation.max_length} (of BuildConversation)'
            )
        _note(
            results,
            f'the picture of {width}x{height} pixels is scaled to '
            f'{new_width}x{new_height}: {reason}; prompts and masks keep to the '
            "picture's own pixels",
        )

    def _note_text(self, results: dict) -> None:
        if results['dropped_turns']:
            _note(
                results,
                f'{results["dropped_turns"]} earlier turns are left out: they do not '
                f'fit into max_length={self._conversation.max_length} (of BuildConversation)',
            )
        self._note_words(results, self._conversation.unseen_words(results))

    def _note_words(self, results: dict, words: list[str]) -> None:
        if words:
            shown = ', '.join(map(repr, words[:_SHOWN_WORDS]))
            more = f' and {len(words) - _SHOWN_WORDS} more' if len(words) > _SHOWN_WORDS else ''
            _note(
                results,
                f'not among the words of the training samples that were read: {shown}'
                f'{more} (as written here); the model hardly knows what that means',
            )


def _first(stages: Sequence[Callable], kind: type) -> Any:
    return next((stage for stage in stages if isinstance(stage, kind)), None)


def _note(results: dict, text: str) -> None:
    results['meta']['warnings'].append(text)
