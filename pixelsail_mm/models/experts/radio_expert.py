"""RADIO, a vision foundation model distilled from several, as an expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.transformers_expert import TransformersExpert
from pixelsail_mm.registry import MODELS

#: Long sides above this are out of the range RADIO was trained for (its model cards).
MAX_SIDE = 2048


@MODELS.register_module()
class RADIOExpert(TransformersExpert):
    """RADIO's spatial features (RADIO-L: 1024 channels), one per patch of 16 pixels.

    The paper tries ``nvidia/RADIO-L`` in an ablation, against our patch states
    (``feature='backbone'``, ``expert_channels=1024``, squared error). Images enter in the range
    0..1, RADIO normalises them itself; the aspect ratio is kept up to the rounding of each side to
    whole patches.

    The public weights come with Python code of their own. It is only executed when
    ``trust_remote_code`` allows it. Without: export the model to ONNX elsewhere and use
    :class:`~pixelsail_mm.models.experts.onnx_expert.OnnxExpert`.

    Args:
        model: Folder or hub name of the weights, e.g. ``'nvidia/RADIO-L'``. That code further
            needs the package timm.
        size: Shorter side in pixels the image is resized to (768 is what RADIO-L prefers); less
            where the longer one would exceed 2048.
        dtype: Parameter dtype on a GPU; on the CPU always float32.
        trust_remote_code: Execute the code that comes with the weights.

    Raises:
        FileNotFoundError: The weights are not there.
        ConfigError: They need code of their own and ``trust_remote_code`` is off, or that code
            lacks a package; or they are not RADIO's.
    """

    feature = 'spatial_features'
    model_class, processor_class = 'AutoModel', 'CLIPImageProcessor'

    def __init__(
        self, model: str, size: int = 768, dtype: str = 'float32', trust_remote_code: bool = False
    ) -> None:
        if isinstance(model, Mapping):
            raise ConfigError(
                'distill.expert.model: RADIOExpert has no class for random weights; '
                'give a folder or a hub name'
            )
        self.size = size
        self._trusted = trust_remote_code
        super().__init__(model, dtype, self._processor_options({}))
        self.patch_size = self._patch_size()

    def _pretrained(self, model: str, options: dict) -> tuple[nn.Module, Any]:
        try:
            return super()._pretrained(model, options, trust_remote_code=self._trusted)
        except ConfigError as error:
            if self._trusted or 'trust_remote_code' not in str(error.__cause__):
                raise
            raise ConfigError(
                f'distill.expert.model: {model!r} comes with Python code of its own, which is not '
                'executed unless you say so: read it, then set '
                'distill.expert.trust_remote_code=True; or export the model to ONNX and use '
                'OnnxExpert, which executes none'
            ) from error
        except ImportError as error:
            raise ConfigError(
                f'distill.expert.model: the code that comes with {model!r} needs '
                f'further packages ({str(error).strip()})'
            ) from error

    def _patch_size(self) -> int:
        step = getattr(self.model, 'min_resolution_step', None) or getattr(
            self.model.config, 'patch_size', None
        )
        if not isinstance(step, int):
            raise ConfigError(
                f'distill.expert.model: {self.source!r} is no RADIO model: neither '
                'it nor its config says the size of a patch'
            )
        return step

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`VisionExpert.fingerprint`."""
        return self._sized(super().fingerprint(), self.size)

    @classmethod
    def fingerprint_of(cls, **settings: Any) -> dict[str, Any]:
        """See :meth:`VisionExpert.fingerprint_of`."""
        size = settings.get('size', 768)
        return cls._sized(super().fingerprint_of(**settings), size)

    @staticmethod
    def _sized(found: dict[str, Any], size: int) -> dict[str, Any]:
        found['preprocessing']['size'] = dict(shortest_edge=size, longest_edge=MAX_SIDE)
        return found

    @classmethod
    def _processor_options(cls, arguments: Mapping[str, Any]) -> dict:
        return dict(do_resize=True, do_center_crop=False, do_rescale=True, do_normalize=False)

    def _image_options(self, height: int, width: int) -> dict:
        """Whole patches that keep the aspect ratio best."""
        scale = min(self.size / min(height, width), MAX_SIDE / max(height, width))
        return dict(
            size={
                name: max(1, round(side * scale / self.patch_size)) * self.patch_size
                for name, side in (('height', height), ('width', width))
            }
        )

    def _feature(self, pixel_values: Tensor) -> Tensor:
        features = _spatial(self.model(pixel_values))
        rows, columns = (side // self.patch_size for side in pixel_values.shape[2:])
        if (
            not torch.is_tensor(features)
            or features.ndim != 3
            or (features.shape[1] != rows * columns)
        ):
            shape = tuple(features.shape) if torch.is_tensor(features) else type(features).__name__
            raise ConfigError(
                f'distill.expert.model: {self.source!r} gives {shape} for an image of '
                f'{rows}x{columns} patches; RADIO gives (summary, spatial_features) with '
                'spatial_features (1,patches,channels)'
            )
        return features.transpose(1, 2).unflatten(2, (rows, columns))


def _spatial(output: Any) -> Any:
    """Spatial features of what RADIO gives.

    A pair ``(summary, spatial_features)``; with adaptors in its config a dict of such pairs, its
    own under ``'backbone'`` (RADIO's documentation).
    """
    if isinstance(output, Mapping):
        output = output.get('backbone', output)
    if hasattr(output, 'features'):
        return output.features
    return output[1] if isinstance(output, (tuple, list)) and len(output) == 2 else output
