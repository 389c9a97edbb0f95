"""Vision experts on Hugging Face transformers: Mask2Former and SAM 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor, nn

from pixelsail_mm.models.experts.base import VisionExpert, has_image
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample


class TransformersExpert(VisionExpert):
    """A frozen transformers model that sees the un-resized image through its own processor.

    Args:
        model: Folder or hub name of weights, or a dict of config settings for random weights.
        dtype: Parameter dtype on a GPU; on the CPU always float32.
        processor: Settings of the image processor that differ from its own.

    Raises:
        FileNotFoundError: The weights are not there.
        ValueError: They do not fill the model, so that parts of the teacher would be random.
    """

    #: Starts of the names of the weights that the feature depends on.
    used_weights: tuple[str, ...] = ('', )

    def __init__(self, model: str | Mapping[str, Any], dtype: str = 'float32',
                 processor: Mapping[str, Any] | None = None) -> None:
        options = dict(processor or {})
        if isinstance(model, Mapping):
            self.model = self._random(dict(model))
            self.processor = self._processor_class()(**options)
        else:
            self.model, self.processor = self._pretrained(model, options)
        self.model.eval().requires_grad_(False)
        self.dtype = getattr(torch, dtype)
        self.device = torch.device('cpu')

    def _pretrained(self, model: str, options: dict) -> tuple[nn.Module, Any]:
        if Path(model).is_absolute() and not Path(model).is_dir():
            raise FileNotFoundError(f'distill.expert.model: folder {model} does not exist')
        try:
            loaded, report = self._model_class().from_pretrained(model, output_loading_info=True)
            processor = self._processor_class().from_pretrained(model, **options)
        except OSError as error:
            raise FileNotFoundError(
                f'distill.expert.model: {model!r} could not be loaded '
                f'({str(error).splitlines()[0]}). Give a folder with config.json, weights and '
                'preprocessor_config.json, or a hub name when a network is available') from error
        absent = sorted(name for name, _ in loaded.named_parameters()
                        if name in report['missing_keys'] and name.startswith(self.used_weights))
        if absent:
            raise ValueError(
                f'distill.expert.model: {model!r} lacks {len(absent)} weights of '
                f'{type(loaded).__name__}, e.g. {absent[0]}; give weights of this architecture')
        return loaded, processor

    def to(self, device: torch.device) -> TransformersExpert:
        """Follow the trained model to its device."""
        if device != self.device:
            self.device = device
            self.model.to(device, self.dtype if device.type == 'cuda' else torch.float32)
        return self

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
        pixels = self.processor(images=_original_image(sample), return_tensors='pt',
                                input_data_format='channels_first')['pixel_values']
        pixels = pixels.to(self.device, next(self.model.parameters()).dtype)
        return self._feature(pixels)[0].float()

    def _random(self, settings: dict) -> nn.Module:
        raise NotImplementedError(f'{type(self).__name__} must implement _random')

    def _model_class(self) -> type:
        raise NotImplementedError(f'{type(self).__name__} must implement _model_class')

    def _processor_class(self) -> type:
        raise NotImplementedError(f'{type(self).__name__} must implement _processor_class')

    def _feature(self, pixel_values: Tensor) -> Tensor:
        raise NotImplementedError(f'{type(self).__name__} must implement _feature')


def _original_image(sample: PixelDataSample) -> Tensor:
    """RGB uint8 ``(3,H,W)`` at the original size, from memory or from the file."""
    image = sample.get('image')
    if image is not None:
        return image.cpu()
    from pixelsail_mm.datasets.transforms import LoadImage
    pixels = LoadImage().transform(dict(img_path=sample.get('img_path')))['img']
    if pixels is None:
        raise ValueError(f'sample {sample.get("sample_id")!r}: its image lives in memory only; '
                         'experts need keep_image=True in PackPixelInputs')
    return torch.from_numpy(pixels).permute(2, 0, 1)


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

    used_weights = ('model.pixel_level_module.', )

    def __init__(self, model: str | Mapping[str, Any], size: int = 800,
                 dtype: str = 'float32') -> None:
        super().__init__(model, dtype, dict(
            size=dict(shortest_edge=size, longest_edge=max(1333, size))))

    def _model_class(self) -> type:
        from transformers import Mask2FormerForUniversalSegmentation
        return Mask2FormerForUniversalSegmentation

    def _processor_class(self) -> type:
        from transformers import Mask2FormerImageProcessor
        return Mask2FormerImageProcessor

    def _random(self, settings: dict) -> nn.Module:
        from transformers import AutoConfig, Mask2FormerConfig
        backbone = settings.pop('backbone_config', None)
        if isinstance(backbone, Mapping):
            backbone = dict(backbone)
            settings['backbone_config'] = AutoConfig.for_model(backbone.pop('model_type'),
                                                               **backbone)
        return self._model_class()(Mask2FormerConfig(**settings))

    def _feature(self, pixel_values: Tensor) -> Tensor:
        # Only the pixel level is needed; the transformer decoder behind it is left out.
        return self.model.model.pixel_level_module(pixel_values).decoder_last_hidden_state


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
        ValueError: ``size`` is not the model's.
    """

    used_weights = ('vision_encoder.', 'no_memory_embedding')

    def __init__(self, model: str | Mapping[str, Any], size: int = 1024,
                 dtype: str = 'float32') -> None:
        super().__init__(model, dtype, dict(size=dict(height=size, width=size)))
        vision = self.model.config.vision_config
        fitting = vision.backbone_feature_sizes[0][0] * vision.backbone_config.patch_stride[0]
        if size != fitting:
            raise ValueError(f'distill.expert.size={size}: this model works at {fitting}')

    def _model_class(self) -> type:
        from transformers import Sam2Model
        return Sam2Model

    def _processor_class(self) -> type:
        from transformers.models.sam2.image_processing_sam2_fast import Sam2ImageProcessorFast
        return Sam2ImageProcessorFast

    def _random(self, settings: dict) -> nn.Module:
        from transformers import Sam2Config
        return self._model_class()(Sam2Config(**settings))

    def _feature(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_embeddings(pixel_values)[-1]
