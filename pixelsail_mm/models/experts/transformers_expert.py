"""Vision experts on Hugging Face transformers: Mask2Former and SAM 2."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from pixelsail_mm.compat.transformers import image_processor_class
from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.models.experts.base import VisionExpert, has_image
from pixelsail_mm.models.experts.cache.fingerprint import (
    plain,
    settings_sha256,
    tensors_sha256,
    weights_sha256,
)
from pixelsail_mm.models.experts.images import original_image
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

DTYPES = ('float32', 'float16', 'bfloat16')
# What transformers raises for files that are cut short or belong to another model.
_WRONG_WEIGHTS = (
    SafetensorError,
    RuntimeError,
    UnpicklingError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
)
# Settings of an image processor that its pixels depend on.
_PREPROCESSING = (
    'do_resize',
    'size',
    'size_divisor',
    'resample',
    'do_center_crop',
    'crop_size',
    'do_pad',
    'pad_size',
    'do_rescale',
    'rescale_factor',
    'do_normalize',
    'image_mean',
    'image_std',
)


class TransformersExpert(VisionExpert):
    """A frozen transformers model that sees the un-resized image through its own processor.

    Args:
        model: Folder or hub name of weights, or a dict of config settings for random weights.
        dtype: Parameter dtype on a GPU; on the CPU always float32.
        processor: Settings of the image processor that differ from its own.

    Raises:
        FileNotFoundError: The weights are not there.
        ConfigError: They are damaged, of another architecture, or do not fill the model, so that
            parts of the teacher would be random; or ``dtype`` is unknown.
    """

    #: Starts of the names of the weights that the feature depends on.
    used_weights: tuple[str, ...] = ('',)
    #: What fingerprints call the map.
    feature = ''
    #: Names in Transformers of the classes of model, config (for random weights) and processor.
    model_class = config_class = processor_class = ''

    def __init__(
        self,
        model: str | Mapping[str, Any],
        dtype: str = 'float32',
        processor: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f'distill.expert.dtype={dtype!r}: use one of {DTYPES}')
        options = dict(processor or {})
        self._weights = None
        if isinstance(model, Mapping):
            config = getattr(transformers, self.config_class)(**deepcopy(dict(model)))
            self.model = getattr(transformers, self.model_class)(config)
            self.processor = image_processor_class(self.processor_class)(**options)
            self._weights = tensors_sha256(self.model.state_dict())
        else:
            self.model, self.processor = self._pretrained(model, options)
        self.model.eval().requires_grad_(False)
        self.source = model
        self.dtype = getattr(torch, dtype)
        self.device = torch.device('cpu')

    def _pretrained(self, model: str, options: dict, **loading) -> tuple[nn.Module, Any]:
        if Path(model).is_absolute() and not Path(model).is_dir():
            raise FileNotFoundError(f'distill.expert.model: folder {model} does not exist')
        try:
            # Whatever precision the file has: teachers run in `dtype`, see `to`.
            loaded, report = getattr(transformers, self.model_class).from_pretrained(
                model, output_loading_info=True, dtype=torch.float32, **loading
            )
            processor = image_processor_class(self.processor_class).from_pretrained(
                model, **options
            )
        except OSError as error:
            raise FileNotFoundError(
                f'distill.expert.model: {model!r} could not be loaded '
                f'({first_line(error)}). Give a folder with config.json, weights and '
                'preprocessor_config.json, or a hub name when a network is available'
            ) from error
        except _WRONG_WEIGHTS as error:
            raise ConfigError(
                f'distill.expert.model: {model!r} does not hold weights for '
                f'{type(self).__name__}, or damaged ones ({first_line(error)}); get them again, '
                'or give those of this architecture'
            ) from error
        absent = sorted(
            name
            for name, _ in loaded.named_parameters()
            if name in report['missing_keys'] and name.startswith(self.used_weights)
        )
        if absent:
            raise ConfigError(
                f'distill.expert.model: {model!r} lacks {len(absent)} weights of '
                f'{type(loaded).__name__}, e.g. {absent[0]}; give weights of this architecture'
            )
        return loaded, processor

    def to(self, device: torch.device) -> TransformersExpert:
        """Follow the trained model to its device."""
        device = torch.device(device)
        if device != self.device:
            self.device = device
            self.model.to(device, self.dtype if device.type == 'cuda' else torch.float32)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`VisionExpert.fingerprint`."""
        return self._fingerprint(
            self.source,
            self._weights or weights_sha256(self.source),
            self.processor,
            str(self.dtype).removeprefix('torch.'),
        )

    @classmethod
    def fingerprint_of(cls, **settings: Any) -> dict[str, Any]:
        """See :meth:`VisionExpert.fingerprint_of`; reads the processor's settings only."""
        bound = inspect.signature(cls).bind(**settings)
        bound.apply_defaults()
        model = bound.arguments['model']
        options = cls._processor_options(bound.arguments)
        kind, dtype = image_processor_class(cls.processor_class), bound.arguments['dtype']
        if isinstance(model, Mapping):
            return cls._fingerprint(model, None, kind(**options), dtype)
        try:
            processor = kind.from_pretrained(model, local_files_only=True, **options)
        except OSError:
            processor = None
        return cls._fingerprint(model, weights_sha256(model), processor, dtype)

    @classmethod
    def _fingerprint(
        cls, model: str | Mapping[str, Any], weights: str | None, processor: Any, dtype: str
    ) -> dict[str, Any]:
        settings = dict.fromkeys(_PREPROCESSING)
        if processor is not None:
            known = processor.to_dict()
            settings.update({key: known.get(key) for key in _PREPROCESSING})
        feature = dict(map=cls.feature, settings_sha256=settings_sha256(model))
        return plain(
            dict(
                expert=cls.__name__,
                weights_sha256=weights,
                feature=feature,
                preprocessing=settings | dict(dtype=dtype),
            )
        )

    @torch.no_grad()
    def __call__(self, data_samples: Sequence[PixelDataSample]) -> list[Tensor | None]:
        """See :class:`VisionExpert`; images are taken one by one, their sizes differ.

        Raises:
            BadSampleError: The image was not kept in the sample and its file cannot be read.
        """
        # The teacher keeps its own precision inside the autocast of the model it teaches.
        with torch.autocast(self.device.type, enabled=False):
            return [self._map(sample) if has_image(sample) else None for sample in data_samples]

    def _map(self, sample: PixelDataSample) -> Tensor:
        image = original_image(sample)
        pixels = self.processor(
            images=image,
            return_tensors='pt',
            input_data_format='channels_first',
            **self._image_options(*image.shape[1:]),
        )['pixel_values']
        pixels = pixels.to(self.device, next(self.model.parameters()).dtype)
        return self._feature(pixels)[0].float()

    def _image_options(self, height: int, width: int) -> dict:
        """Settings of the processor for an image of this size."""
        return {}

    @classmethod
    @abstractmethod
    def _processor_options(cls, arguments: Mapping[str, Any]) -> dict:
        """Settings of the processor that follow from the arguments of the class."""

    @abstractmethod
    def _feature(self, pixel_values: Tensor) -> Tensor:
        """The map ``(1,C,h,w)`` of an image ``(1,3,H,W)``."""


@MODELS.register_module()
class Mask2FormerExpert(TransformersExpert):
    """Mask2Former's pixel-decoder map (256 channels), image resized to ``size``.

    The paper uses Swin-L trained on COCO panoptic, at a size of 800, against our projected
    features (``feature='neck'``).

    Args:
        model: See :class:`TransformersExpert`; settings of ``Mask2FormerConfig``.
        size: Shorter side in pixels the processor resizes to (longer side at most 1333).
        dtype: See :class:`TransformersExpert`.
    """

    used_weights = ('model.pixel_level_module.',)
    feature = 'pixel_decoder_last_hidden_state'
    model_class, config_class = 'Mask2FormerForUniversalSegmentation', 'Mask2FormerConfig'
    processor_class = 'Mask2FormerImageProcessor'

    def __init__(
        self, model: str | Mapping[str, Any], size: int = 800, dtype: str = 'float32'
    ) -> None:
        super().__init__(model, dtype, self._processor_options(dict(size=size)))

    @classmethod
    def _processor_options(cls, arguments: Mapping[str, Any]) -> dict:
        size = arguments['size']
        return dict(size=dict(shortest_edge=size, longest_edge=max(1333, size)))

    def _feature(self, pixel_values: Tensor) -> Tensor:
        # Only the pixel level is needed; the transformer decoder behind it is left out.
        return self.model.model.pixel_level_module(pixel_values).decoder_last_hidden_state

    def _image_options(self, height: int, width: int) -> dict:
        """The processor's own size, but for images so thin that a side of it would be zero."""
        longest = self.processor.size['longest_edge']
        if max(height, width) <= longest * min(height, width):
            return {}
        # Both are rounded up to `size_divisor`.
        return dict(
            size=dict(
                height=longest if height > width else 1, width=longest if width > height else 1
            )
        )


@MODELS.register_module()
class SAM2Expert(TransformersExpert):
    """SAM 2's image embedding (256 channels, 64x64 at an input of 1024).

    The coarsest level with the no-memory embedding added, which is what the official image
    predictor keeps as ``image_embed`` and the authors' release distils (``feature='backbone'``).

    Args:
        model: See :class:`TransformersExpert`; settings of ``Sam2Config``.
        size: Side in pixels the processor resizes to; must fit the model's feature sizes.
        dtype: See :class:`TransformersExpert`.

    Raises:
        ConfigError: ``size`` is not the model's.
    """

    used_weights = ('vision_encoder.', 'no_memory_embedding')
    feature = 'image_embed'
    model_class, config_class = 'Sam2Model', 'Sam2Config'
    processor_class = 'Sam2ImageProcessor'

    def __init__(
        self, model: str | Mapping[str, Any], size: int = 1024, dtype: str = 'float32'
    ) -> None:
        super().__init__(model, dtype, self._processor_options(dict(size=size)))
        vision = self.model.config.vision_config
        fitting = vision.backbone_feature_sizes[0][0] * vision.backbone_config.patch_stride[0]
        if size != fitting:
            raise ConfigError(f'distill.expert.size={size}: this model works at {fitting}')

    @classmethod
    def _processor_options(cls, arguments: Mapping[str, Any]) -> dict:
        return dict(size=dict(height=arguments['size'], width=arguments['size']))

    def _feature(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_embeddings(pixel_values)[-1]
