"""Adapter for VLMEvalKit (https://github.com/open-compass/VLMEvalKit).

``PixelSAIL`` of this module is the class that the kit builds; it exists once the kit is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from pixelsail_mm.evaluation.harnesses.answering import (
    MAX_NEW_TOKENS,
    KitError,
    Question,
    UnsupportedItemError,
    VQAAnswerer,
    checked_limit,
    checked_prompts,
)
from pixelsail_mm.evaluation.harnesses.prompts import benchmark_prompt, find_rule, is_given

_REMEDY = (
    'the adapter needs VLMEvalKit: git clone https://github.com/open-compass/VLMEvalKit && '
    'pip install -e VLMEvalKit (see docs/vqa_evaluation.md)'
)


class VLMEvalKitMethods:
    """The kit's model interface; :func:`adapter_class` joins it with the kit's base class.

    Args:
        config: Config or folder of the model; see :class:`~pixelsail_mm.apis.PixelSAILInferencer`.
        weights: Checkpoint; a folder's own weights by default.
        device: Device; the best available one by default (the kit gives each process its own GPU).
        max_new_tokens: Longest answer.
        prompts: ``'pixel_sail'`` for the protocol of
            :data:`~pixelsail_mm.evaluation.harnesses.prompts.PROMPT_RULES`, ``'kit'`` for the
            prompts that the kit gives to models without their own.
    """

    INTERLEAVE = False

    def __init__(
        self,
        config: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        prompts: str = 'pixel_sail',
    ) -> None:
        super().__init__()
        self.max_new_tokens = checked_limit(max_new_tokens)
        self.prompts = checked_prompts(prompts)
        self.answerer = VQAAnswerer(config, weights, device)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Tell whether :meth:`build_prompt` writes the question of a benchmark."""
        return self.prompts != 'kit' and self._rule(dataset) is not None

    def build_prompt(self, line: Mapping[str, Any], dataset: str | None = None) -> list[dict]:
        """Message of one item: its images first, then the question.

        Args:
            line: Row of the benchmark's table.
            dataset: Name of the benchmark.
        """
        images = []
        if any(key in line and _has_image(line[key]) for key in ('image', 'image_path')):
            images = self.dump_image(line, dataset)
            images = [images] if isinstance(images, str) else list(images)
        text = benchmark_prompt(line, self._rule(dataset))
        return [*(dict(type='image', value=path) for path in images), dict(type='text', value=text)]

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Answer one message.

        Args:
            message: Parts ``dict(type='image' | 'text', value=...)``; the texts are joined by
                newlines.
            dataset: Name of the benchmark.

        Raises:
            UnsupportedItemError: More than one image, or something else than images and texts.
        """
        name = f'VLMEvalKit {dataset or "message"}'
        others = {part['type'] for part in message} - {'image', 'text'}
        if others:
            raise UnsupportedItemError(
                name,
                'message',
                f'it holds {sorted(others)}, but the model '
                'reads images and text only; leave out this benchmark',
            )
        question = Question(
            name=name,
            text='\n'.join(part['value'] for part in message if part['type'] == 'text'),
            images=[part['value'] for part in message if part['type'] == 'image'],
            max_new_tokens=self.max_new_tokens,
        )
        return self.answerer([question])[0]

    @staticmethod
    def _rule(dataset: str | None):
        """Rule of a benchmark; None for video, several turns and kinds without a rule."""
        from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE

        if dataset is None or DATASET_MODALITY(dataset) != 'IMAGE':
            return None
        return find_rule(DATASET_TYPE(dataset), dataset)


def _has_image(cell: Any) -> bool:
    return len(cell) > 0 if isinstance(cell, (list, tuple)) else is_given(cell)


@lru_cache(maxsize=1)
def adapter_class() -> type:
    """The model class for the kit.

    Raises:
        KitError: The kit is not installed.
    """
    try:
        from vlmeval.vlm.base import BaseModel
    except ImportError as error:
        raise KitError(f'{error}; {_REMEDY}') from error
    return type(
        'PixelSAIL',
        (VLMEvalKitMethods, BaseModel),
        dict(__doc__=VLMEvalKitMethods.__doc__, __module__=__name__),
    )


def register(name: str = 'pixelsail', **settings: Any) -> str:
    """Add a checkpoint to the kit's list of models.

    Args:
        name: Name under which the kit's ``--model`` finds it.
        **settings: Arguments of :class:`VLMEvalKitMethods`; the model is built when it is needed.

    Returns:
        The name.

    Raises:
        KitError: The kit is not installed.
    """
    model = adapter_class()
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(model, **settings)
    return name


def __getattr__(name: str) -> Any:
    if name == 'PixelSAIL':
        return adapter_class()
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
