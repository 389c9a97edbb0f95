"""A config's ``test_pipeline`` as a Transformers processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import ModelOutput

from pixelsail_mm.apis.input_pipeline import InputPipeline
from pixelsail_mm.apis.inputs import ImageInput, make_columns, make_image_record, make_record
from pixelsail_mm.checkpoints.folders.configuration import check_stages
from pixelsail_mm.datasets.transforms import BuildConversation
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.hf.batching import IMAGE_KEYS, TEXT_KEYS, pad_images, pad_samples
from pixelsail_mm.hf.chat import ChatFormat
from pixelsail_mm.notices import warn_once
from pixelsail_mm.registry import TRANSFORMS

#: Arguments that processors usually take and that have one meaning here whatever their value.
_WITHOUT_EFFECT = ('padding', 'add_special_tokens', 'return_attention_mask')


def build_stages(transforms: Sequence[dict], **defaults: Any) -> list:
    """Build transforms that come from a data file.

    Args:
        transforms: Their configs.
        **defaults: Settings of every transform that needs a tokenizer.

    Raises:
        ConfigError: See :func:`~pixelsail_mm.checkpoints.folders.configuration.check_stages`.
    """
    return [
        TRANSFORMS.build(stage | defaults if stage['type'] == 'BuildConversation' else stage)
        for stage in check_stages(transforms, 'the processor')
    ]


class PixelSAILImageProcessor(BaseImageProcessor):
    """Images and visual prompts: the stages of the pipeline in front of ``BuildConversation``.

    Pixels stay uint8; the model normalises them.

    Args:
        transforms: Configs of these stages.
        **kwargs: See ``BaseImageProcessor``.
    """

    model_input_names = list(IMAGE_KEYS)

    def __init__(self, transforms: Sequence[dict] = (), **kwargs) -> None:
        super().__init__(**kwargs)
        self.transforms = transforms

    def build(self) -> list:
        """The stages."""
        return build_stages(self.transforms)

    def preprocess(
        self,
        images: ImageInput | Sequence[ImageInput],
        visual_prompts: Any = None,
        return_tensors: str = 'pt',
    ) -> BatchFeature:
        """Resize images and place visual prompts on their patches.

        Args:
            images: One, or several: paths, PIL images or uint8 arrays ``(H,W,3)``.
            visual_prompts: Visual prompts of the image, or a list of them per image; see
                :func:`~pixelsail_mm.apis.inputs.make_prompts`.
            return_tensors: ``'pt'``.

        Returns:
            :data:`~pixelsail_mm.hf.batching.IMAGE_KEYS`.
        """
        _check_tensors(return_tensors)
        columns = make_columns(
            isinstance(images, (list, tuple)), ('image',), image=images, prompts=visual_prompts
        )
        pipeline = InputPipeline(self.build())
        limit = pipeline.max_pixels
        results = [
            _prepare(pipeline, make_image_record(f'image {i}', *values, max_pixels=limit))
            for i, values in enumerate(zip(*columns))
        ]
        images, prompt_maps = (
            [
                None if result['image'] is None else torch.from_numpy(result[key])
                for result in results
            ]
            for key in ('image', 'prompt_map')
        )
        sizes = [result['ori_shape'] for result in results]
        return BatchFeature(pad_images(images, prompt_maps, sizes))


class PixelSAILProcessor(ProcessorMixin):
    """From images, questions and visual prompts to the inputs of the model.

    Args:
        image_processor: Stages in front of ``BuildConversation``.
        tokenizer: The tokenizer.
        transforms: Configs of ``BuildConversation`` (without its tokenizer) and the stages behind.
        chat_template: Jinja template; the tokenizer's by default.
    """

    attributes = ['image_processor', 'tokenizer']
    image_processor_class = 'AutoImageProcessor'
    tokenizer_class = 'AutoTokenizer'

    def __init__(
        self,
        image_processor: PixelSAILImageProcessor,
        tokenizer: Any,
        transforms: Sequence[dict] = (),
        chat_template: str | None = None,
    ) -> None:
        super().__init__(
            image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template
        )
        self.transforms = transforms

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Content of ``processor_config.json``; the image processor has a file of its own."""
        content = super().to_dict(**kwargs)
        content.pop('image_processor', None)
        return content

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        """Write the same files with every version of Transformers, see ``ProcessorMixin``."""
        files = super().save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        return files

    @cached_property
    def _stages(self) -> list:
        return build_stages(self.transforms, tokenizer=self.tokenizer)

    @cached_property
    def _conversation(self) -> BuildConversation:
        for stage in self._stages:
            if isinstance(stage, BuildConversation) and stage.generation:
                return stage
        raise ConfigError(
            'the processor has no BuildConversation with generation=True among its '
            'transforms; check processor_config.json'
        )

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The format that joins questions and answers to one text."""
        stage = self._conversation
        return ChatFormat(stage.template, self.tokenizer.eos_token or '', stage.strip)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        visual_prompts: Any = None,
        history: Sequence | None = None,
        answer_prefix: str | Sequence | None = None,
        return_tensors: str = 'pt',
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one question, or a batch if ``text`` is a list.

        Args:
            images: Image of each question: a path, a PIL image or a uint8 array ``(H,W,3)``; None
                for text only. An image may stand in a list of its own.
            text: Question, which the prompt template is put around; or what
                ``apply_chat_template`` rendered.
            videos: Not supported.
            audio: Not supported.
            visual_prompts: Masks, boxes, points or scribbles that the text names as ``<PromptK>``;
                see :func:`~pixelsail_mm.apis.inputs.make_prompts`.
            history: Earlier turns as (question, answer); or let the chat template write them.
            answer_prefix: Text the answer must begin with.
            return_tensors: ``'pt'``.
            **kwargs: ``padding`` and the like change nothing: rows are padded on the left to the
                longest one.

        Returns:
            The batch that :mod:`pixelsail_mm.hf.batching` describes.

        Raises:
            BadSampleError: An input is unusable; names it.
            TypeError: An argument is not supported.
        """
        _check_tensors(return_tensors)
        unknown = [key for key in kwargs if key not in _WITHOUT_EFFECT]
        unknown += [
            key for key, value in dict(videos=videos, audio=audio).items() if value is not None
        ]
        if unknown:
            raise TypeError(f'{type(self).__name__}: {", ".join(unknown)} not supported')
        several = isinstance(text, (list, tuple))
        if several and not text:
            raise ValueError('text: an empty list; give at least one question')
        if isinstance(images, (list, tuple)):
            # For one conversation Transformers' chat template wraps the image twice.
            images = [_only(image) for image in images] if several else _only(_only(images))
        columns = make_columns(
            several,
            ('text',),
            images=images,
            text=text,
            visual_prompts=visual_prompts,
            history=history,
            answer_prefix=answer_prefix,
        )
        return BatchFeature(
            pad_samples(
                [self._sample(f'input {i}', *values) for i, values in enumerate(zip(*columns))],
                self._conversation.tokens.pad,
            )
        )

    def apply_chat_template(
        self, conversation: Sequence, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """See ``ProcessorMixin.apply_chat_template``.

        Raises:
            ValueError: ``continue_final_message`` with a prompt template that has no text in front
                of a question: where the last question ends could not be seen any more.
        """
        if kwargs.get('continue_final_message') and not self.chat_format.head:
            raise ValueError(
                'continue_final_message: the prompt template of this model has no text'
                ' in front of a question; pass the beginning of the answer to the '
                'processor as answer_prefix'
            )
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _sample(
        self,
        name: str,
        image: ImageInput,
        text: str,
        prompts: Any,
        history: Sequence | None,
        answer_prefix: str | None,
    ) -> dict:
        """One sample through all stages."""
        if isinstance(text, str):
            turns, text, begun = self.chat_format.parse(text)
            history = [*(history or ()), *turns]
            answer_prefix = begun + (answer_prefix or '')
        pipeline = InputPipeline([*self.image_processor.build(), *self._stages])
        record = make_record(
            name, image, text, prompts, history, answer_prefix, max_pixels=pipeline.max_pixels
        )
        return _prepare(pipeline, record)

    def post_process_answers(
        self, sequences: Tensor | ModelOutput, inputs: BatchFeature
    ) -> list[str]:
        """Text of the answers, as ``PixelSAILInferencer`` gives it: ``[SEG]`` stays visible.

        Args:
            sequences: What ``generate`` returned (or its ``sequences``).
            inputs: What it was given.
        """
        sequences = getattr(sequences, 'sequences', sequences)
        tokens, prompts = self._conversation.tokens, inputs['input_ids']
        unspoken = {tokens.eos, tokens.pad, self.tokenizer.convert_tokens_to_ids('<|im_end|>')}
        copies = len(sequences) // len(prompts)
        texts = []
        for row, sequence in enumerate(sequences):
            forced = inputs['answer_mask'][row // copies].bool()
            ids = [*prompts[row // copies][forced].tolist(), *sequence[prompts.shape[1] :].tolist()]
            texts.append(
                self.tokenizer.decode(
                    [token for token in ids if token not in unspoken],
                    skip_special_tokens=False,
                    clean_up_tokenization_spaces=False,
                ).strip()
            )
        return texts

    @property
    def model_input_names(self) -> list[str]:
        """Names of everything a call gives."""
        return [*TEXT_KEYS, *IMAGE_KEYS]


def _prepare(pipeline: InputPipeline, record: dict) -> dict:
    """Run a pipeline on a record and log what it says; a batch has no place for texts."""
    result = pipeline(record)
    for text in record['meta']['warnings']:
        warn_once(text)
    return result


def _only(image: Any) -> Any:
    """The image in a list of one, None for an empty list."""
    if not isinstance(image, (list, tuple)):
        return image
    if len(image) > 1:
        raise ValueError(f'{len(image)} images for one question; ask about one image at a time')
    return image[0] if image else None


def _check_tensors(return_tensors: str | None) -> None:
    if return_tensors not in ('pt', None):
        raise ValueError(f"return_tensors={return_tensors!r}: only 'pt' is supported")
