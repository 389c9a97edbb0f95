"""The transforms of a config on what a user asks, with a word on what they change."""

from __future__ import annotations

from typing import Any, Callable, Sequence

from pixelsail_mm.datasets.transforms import BuildConversation, ResizeToGrid

_SHOWN_WORDS = 12


class InputPipeline:
    """Run the transforms of a test pipeline on one record of a user.

    A data set states its images and its questions; a user asks about any photo in any words. So a
    picture that leaves no room for the question within ``max_length`` is scaled down here, where a
    data set's is refused, and whatever makes the model read something else than was given is added
    to ``meta['warnings']``: a picture scaled down, earlier turns left out, words that training
    never had.

    Args:
        stages: Built transforms, in order.
    """

    def __init__(self, stages: Sequence[Callable]) -> None:
        self.stages = list(stages)
        self._resize = _first(self.stages, ResizeToGrid)
        self._conversation = _first(self.stages, BuildConversation)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Run all stages.

        Args:
            record: What :func:`~pixelsail_mm.apis.inputs.make_record` gives; changed.

        Returns:
            What the last stage gives.

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

    def _fitting_size(self, results: dict) -> int:
        """Largest ``max_size`` at which the image and the last turn fit into ``max_length``."""
        resize, talk = self._resize, self._conversation
        bound = resize.max_size
        if talk is not None:
            room = talk.image_room(results)
            while (bound - resize.patch_size >= resize.patch_size
                   and talk.image_length(resize.grid(*results['ori_shape'], bound)) > room):
                bound -= resize.patch_size
        return bound

    def _note_scaling(self, results: dict) -> None:
        height, width = results['ori_shape']
        new_height, new_width = results['image'].shape[1:]
        if new_height >= height and new_width >= width:
            return
        reason = (f'this model reads pictures of up to {self._resize.max_size} pixels '
                  '(max_size of ResizeToGrid)')
        if results['max_size'] < self._resize.max_size:
            reason = ('a larger one and the question do not fit into max_length='
                      f'{self._conversation.max_length} (of BuildConversation)')
        _note(results, f'the picture of {width}x{height} pixels is scaled to '
                       f'{new_width}x{new_height}: {reason}; prompts and masks keep to the '
                       "picture's own pixels")

    def _note_text(self, results: dict) -> None:
        if results['dropped_turns']:
            _note(results, f'{results["dropped_turns"]} earlier turns are left out: they do not '
                  f'fit into max_length={self._conversation.max_length} (of BuildConversation)')
        words = [repr(word) for word in self._conversation.unseen_words(results)]
        if words:
            more = f' and {len(words) - _SHOWN_WORDS} more' if len(words) > _SHOWN_WORDS else ''
            _note(results, f'training never had {", ".join(words[:_SHOWN_WORDS])}{more} as '
                  'written here: the model cannot know what that means')


def _first(stages: Sequence[Callable], kind: type) -> Any:
    return next((stage for stage in stages if isinstance(stage, kind)), None)


def _note(results: dict, text: str) -> None:
    results['meta']['warnings'].append(text)
