"""Asking a model questions about images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer import BaseInferencer
from torch import nn

from pixelsail_mm.apis.init_model import init_model
from pixelsail_mm.apis.input_pipeline import InputPipeline
from pixelsail_mm.apis.inputs import ImageInput, make_columns, make_record
from pixelsail_mm.apis.remarks import describe_empty
from pixelsail_mm.datasets.files.pictures import ROTATE
from pixelsail_mm.datasets.transforms import LoadImage
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.notices import warn_once
from pixelsail_mm.registry import SCOPE, TRANSFORMS
from pixelsail_mm.visualization import build_visualizer


class PixelSAILInferencer(BaseInferencer):
    """Ask a model about images, with visual prompts and over several turns.

    Inputs run through the config's own ``inference_pipeline`` (or ``test_pipeline``), the data
    preprocessor and ``predict``, exactly as in testing; what
    :class:`~pixelsail_mm.apis.input_pipeline.InputPipeline` changes for a user's pictures, it says.
    Pictures of answers are drawn by the config's ``visualizer``; by a ``PixelVisualizer`` where
    there is none, or MMEngine's own, which draws no answers.

    Args:
        model: Config file, folder with config and weights, config object, or a model made by
            :func:`~pixelsail_mm.apis.init_model`.
        weights: Checkpoint; a folder's own weights by default.
        device: Device; the best available one by default, that of a given model.
        show_progress: Show a progress bar over batches.
        exif: ``'rotate'`` turns photos in files as their EXIF data say, ``'ignore'`` keeps their
            stored pixels.

    Raises:
        ConfigError: The config has no inference pipeline, or one made for training; or the model
            given has no ``cfg``.

    Example:
        >>> ask = PixelSAILInferencer('demo/checkpoints/pixelsail_tiny_grounding')  # doctest: +SKIP
        >>> result = ask('demo/shapes.jpg', 'Please segment the blue circle.')
        >>> result['text'], result['masks'].shape
        ('[SEG].', (1, 80, 80))
    """

    forward_kwargs = {'max_new_tokens'}
    visualize_kwargs = {'return_visualization'}

    def __init__(
        self,
        model: str | os.PathLike | Mapping | Config | nn.Module,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
        show_progress: bool = False,
        exif: str = ROTATE,
    ) -> None:
        self.exif = exif
        self.say: Callable[[str], None] = warn_once  # how warnings are logged
        if isinstance(model, nn.Module):
            if weights is not None:
                raise ConfigError(
                    'weights are only loaded when the model is built here; pass a '
                    'config with them, or the finished model alone'
                )
            if getattr(model, 'cfg', None) is None:
                raise ConfigError(
                    f'{type(model).__name__} has no `cfg` to take the pipeline from; '
                    'pass a model that init_model made, or a config or folder'
                )
            self._built = (model if device is None else model.to(device)).eval()
        else:
            self._built = init_model(model, weights, device)
        super().__init__(
            model=self._built.cfg, scope=SCOPE, show_progress=show_progress, device=device
        )

    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        text: str | Sequence[str],
        prompts: Any = None,
        history: Sequence | None = None,
        max_new_tokens: int | None = None,
        answer_prefix: str | Sequence | None = None,
        return_visualization: bool = False,
        batch_size: int = 1,
        return_datasamples: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer one question, or several if ``image`` or ``text`` is a list.

        Args:
            image: Path, PIL image or uint8 RGB array ``(H, W, 3)``; ``None`` for text only. A
                photo in a file is turned as its EXIF data say, a PIL image is not; prompts and
                masks are in pixels of what the model sees, see
                :func:`~pixelsail_mm.apis.inputs.make_record`.
            text: Question; ``<PromptK>`` names the visual prompt with id K.
            prompts: Visual prompts of the sample: ``dict(id=K, mask=...|box=...|point=...)`` or
                ``dict(id=K, scribble=[[x, y], ...], width=3)``, or masks, boxes
                ``[x1, y1, x2, y2]`` or points ``[x, y]`` that get the ids 0, 1, ...; see
                :func:`~pixelsail_mm.apis.inputs.make_prompts`.
            history: Earlier turns about the same image, as returned by the last call.
            max_new_tokens: Bound of the answer's length; the config's by default.
            answer_prefix: Text the answer must begin with, e.g. ``'[SEG].'``.
            return_visualization: Draw a picture of each answer.
            batch_size: Samples processed together.
            return_datasamples: Add the data sample of each answer.

        For several samples, ``image`` and ``text`` are lists of equal length (a single value is
        used for all), and ``prompts``, ``history`` and ``answer_prefix`` are ``None`` or lists with
        one entry per sample.

        Returns:
            A dict, or for lists a list of dicts, with

            * ``text``: the answer, ``[SEG]`` included;
            * ``masks``: bool array ``(N, H, W)`` at the image's size, in the order of ``[SEG]``;
            * ``mask_scores``: float32 array ``(N,)`` in 0..1;
            * what other heads predict: field ``pred_NAME`` as ``NAME``, tensors as arrays
              (``boxes`` of ``pred_boxes``, ...);
            * ``visualization``: uint8 RGB array, or ``None``;
            * ``history``: turns so far, to be passed to the next call;
            * ``warnings``: list of str, what the user may not expect: a picture scaled down, a
              prompt that no text names, words that were not among those read of the training data,
              an empty mask that the answer does not announce, ... Each is logged too, once;
            * ``data_sample``: the :class:`~pixelsail_mm.structures.PixelDataSample` with all
              predictions, if ``return_datasamples``.

        Raises:
            BadSampleError: An input is unusable; names input, key and remedy.
            ValueError: Lists of different lengths, or a number below 1.
        """
        several = any(isinstance(value, (list, tuple)) for value in (image, text))
        columns = make_columns(
            several,
            ('image', 'text'),
            image=image,
            text=text,
            prompts=prompts,
            history=history,
            answer_prefix=answer_prefix,
        )
        records = [
            make_record(f'input {i}', *values, exif=self.exif, max_pixels=self.pipeline.max_pixels)
            for i, values in enumerate(zip(*columns))
        ]
        for key, value in dict(max_new_tokens=max_new_tokens, batch_size=batch_size).items():
            if value is not None and value < 1:
                raise ValueError(f'{key} must be at least 1, got {value}')
        results = super().__call__(
            records,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            return_visualization=return_visualization,
            return_datasamples=return_datasamples,
        )
        for record, result in zip(records, results):
            turns = [
                *record['conversation'][:-1],
                dict(record['conversation'][-1], gpt=result['text']),
            ]
            result['history'] = [(turn['human'], turn['gpt']) for turn in turns]
        return results if several else results[0]

    @torch.no_grad()
    def forward(self, inputs: dict, max_new_tokens: int | None = None) -> list:
        """Predict a batch of ``pseudo_collate``; gives data samples with predictions."""
        options = {} if max_new_tokens is None else dict(max_new_tokens=max_new_tokens)
        return self.model.predict(**self.model.data_preprocessor(inputs, False), **options)

    def visualize(
        self, inputs: list[dict], preds: list, return_visualization: bool = False
    ) -> list[np.ndarray | None]:
        """Draw the answers to records; None for each without ``return_visualization``."""
        if not return_visualization:
            return [None] * len(preds)
        return [self._draw(_pixels(record), sample) for record, sample in zip(inputs, preds)]

    def _draw(self, image: np.ndarray | None, sample: Any) -> np.ndarray:
        """Picture of one answer; other visualizers than ours only have MMEngine's methods."""
        if hasattr(self.visualizer, 'draw'):
            return self.visualizer.draw(image, sample)
        self.visualizer.add_datasample('answer', image, sample, draw_gt=False)
        return self.visualizer.get_image()

    def postprocess(
        self, preds: list, visualization: list, return_datasamples: bool = False
    ) -> list[dict[str, Any]]:
        """Turn predicted data samples and their pictures into results, see :meth:`__call__`."""
        results = []
        for sample, picture in zip(preds, visualization):
            said = list(sample.get('warnings', ()))
            result = {name: _plain(value) for name, value in sample.further_predictions().items()}
            if 'pred_masks' in sample:  # a model may have other heads only
                said += describe_empty(sample.pred_masks, sample.pred_text)
                result.update(
                    masks=_plain(sample.pred_masks), mask_scores=_plain(sample.pred_scores)
                )
            for text in said:
                self.say(text)
            result.update(text=sample.pred_text, warnings=said, visualization=picture)
            if return_datasamples:
                result['data_sample'] = sample
            results.append(result)
        return results

    def _init_model(self, cfg: Config, weights: str | None, device: str = 'cpu') -> nn.Module:
        return self._built

    def _init_pipeline(self, cfg: Config) -> InputPipeline:
        stages = cfg.get('inference_pipeline') or cfg.get('test_pipeline')
        if not stages:
            raise ConfigError(
                f'{self._built.cfg.filename or "the config"} has neither '
                '`inference_pipeline` nor `test_pipeline`; add the list of '
                'transforms used in testing'
            )
        built = [TRANSFORMS.build(stage) for stage in stages]
        if any(getattr(stage, 'generation', True) is False for stage in built):
            raise ConfigError(
                'the inference pipeline builds training samples; set '
                'generation=True in its BuildConversation'
            )
        return InputPipeline(built)

    def _init_collate(self, cfg: Config):
        return pseudo_collate

    def _init_visualizer(self, cfg: Config):
        return build_visualizer(cfg.get('visualizer'))


def _plain(value: Any) -> Any:
    """A tensor as an array; half precision, which NumPy may lack, as float32."""
    if not isinstance(value, torch.Tensor):
        return value
    return (value.float() if value.is_floating_point() else value).cpu().numpy()


def _pixels(record: dict) -> np.ndarray | None:
    """The image of a record as uint8 RGB; the pipeline accepted its size."""
    return LoadImage(math.inf).transform(dict(record))['img']
