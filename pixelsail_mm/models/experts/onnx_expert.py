"""Any ONNX model with a dense output as a vision expert."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from PIL import Image
from torch import Tensor

from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.models.experts.base import VisionExpert, has_image
from pixelsail_mm.models.experts.cache.fingerprint import plain
from pixelsail_mm.models.experts.images import original_image
from pixelsail_mm.models.experts.onnx_graph import import_optional, subgraph, weights_sha256
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

LAYOUTS = ('nchw', 'nhwc', 'tokens')
_RESAMPLE = dict(
    nearest=Image.Resampling.NEAREST,
    bilinear=Image.Resampling.BILINEAR,
    bicubic=Image.Resampling.BICUBIC,
    lanczos=Image.Resampling.LANCZOS,
)
_FEATURE = ('output', 'layout', 'patch_size', 'prefix_tokens')
_PREPROCESSING = (
    'size',
    'mean',
    'std',
    'max_value',
    'resample',
    'channels',
    'keep_ratio',
    'multiple',
)
_TYPES = {
    'tensor(float)': np.float32,
    'tensor(float16)': np.float16,
    'tensor(double)': np.float64,
    'tensor(uint8)': np.uint8,
}


@MODELS.register_module()
class OnnxExpert(VisionExpert):
    """A dense tensor of an ONNX model, run by onnxruntime (``pip install pixelsail_mm[experts]``).

    The image goes in as ``(pixel * max_value / 255 - mean) / std``. The tensor may lie anywhere in
    the graph; only what it depends on is loaded and computed.

    Args:
        model: The ``.onnx`` file (weights in files beside it are found).
        output: Name of the tensor: an output of the graph or one inside it.
        size: (height, width) of the model's input, or one number for both. None takes the
            model's own; where that is dynamic, the image's, each side rounded up to ``multiple``.
        mean: Channel means, in the scale that ``max_value`` sets and the order of ``channels``.
        std: Channel standard deviations, likewise.
        max_value: What a white pixel is before ``mean`` and ``std``: 1 or 255.
        resample: ``'nearest'``, ``'bilinear'``, ``'bicubic'`` or ``'lanczos'`` (PIL's,
            antialiased).
        channels: ``'rgb'`` or ``'bgr'``.
        keep_ratio: Scale the image to fit into the input and fill up with zeros at the right and
            at the bottom, as SAM does (the map is cut to the image's part), instead of stretching
            it.
        multiple: See ``size``.
        layout: Of the tensor: ``'nchw'``, ``'nhwc'`` or ``'tokens'`` (``(1,N,C)``, row by row).
        patch_size: Side in pixels of the input's patch behind a token; for ``'tokens'``.
        prefix_tokens: Tokens in front of those of the patches, e.g. a class token.
        threads: Threads of onnxruntime; None takes PyTorch's number.
        providers: Execution providers of onnxruntime; None takes CUDA's on a GPU if the installed
            onnxruntime has it, else the CPU's.

    Raises:
        FileNotFoundError: The model does not exist.
        ConfigError: It is damaged, lacks the tensor, takes another input than one image, or an
            argument is not one of those above; onnx or onnxruntime is not installed.
    """

    def __init__(
        self,
        model: str,
        output: str,
        size: int | Sequence[int] | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        max_value: float = 1.0,
        resample: str = 'bilinear',
        channels: str = 'rgb',
        keep_ratio: bool = False,
        multiple: int = 32,
        layout: str = 'nchw',
        patch_size: int | None = None,
        prefix_tokens: int = 0,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        for key, value, known in (
            ('resample', resample, _RESAMPLE),
            ('layout', layout, LAYOUTS),
            ('channels', channels, ('rgb', 'bgr')),
        ):
            if value not in known:
                raise ConfigError(f'distill.expert.{key}={value!r}: use one of {list(known)}')
        if layout == 'tokens' and patch_size is None:
            raise ConfigError(
                "distill.expert.layout='tokens' needs patch_size, which says how "
                'many rows and columns the tokens are'
            )
        self.file = Path(model)
        self.output = output
        self.layout, self.patch_size, self.prefix_tokens = layout, patch_size, prefix_tokens
        self.mean, self.std = mean, std
        self.max_value, self.resample, self.channels = max_value, resample, channels
        self.keep_ratio, self.multiple = keep_ratio, multiple
        self.threads, self.providers = threads, providers
        self.device = torch.device('cpu')
        self._open()
        self.size = self._fixed_size(size)

    def _open(self) -> None:
        """Start a session on the device."""
        ort = import_optional('onnxruntime')
        model = subgraph(self.file, self.output)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads or torch.get_num_threads()
        options.log_severity_level = 3
        options.add_session_config_entry(
            'session.model_external_initializers_file_folder_path', str(self.file.parent.absolute())
        )
        providers = self._choose_providers(ort.get_available_providers())
        try:
            self._session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise ConfigError(
                f'distill.expert.model: onnxruntime cannot run {self.file} '
                f'({first_line(error)}); get it again, with the files of its '
                'weights if it has some'
            ) from error
        self._input = self._only_input()

    def _choose_providers(self, available: list[str]) -> list:
        if self.providers is not None:
            unknown = [name for name in self.providers if name not in available]
            if unknown:
                raise ConfigError(
                    f'distill.expert.providers: {unknown} not in this onnxruntime, '
                    f'which has {available}'
                )
            return list(self.providers)
        if self.device.type == 'cuda':
            if 'CUDAExecutionProvider' in available:
                return [
                    ('CUDAExecutionProvider', dict(device_id=self.device.index or 0)),
                    'CPUExecutionProvider',
                ]
            MMLogger.get_current_instance().warning(
                f'{self.file}: this onnxruntime has no CUDA provider, the expert runs on the CPU; '
                'install onnxruntime-gpu instead, or cache its features'
            )
        return ['CPUExecutionProvider']

    def _only_input(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ', '.join(f'{value.name} {value.type} {value.shape}' for value in inputs)
            raise ConfigError(
                f'distill.expert.model: {self.file} takes {found or "no input"}; an '
                'expert takes one image (1,3,H,W) or (1,H,W,3)'
            )
        return inputs[0]

    @property
    def _channels_last(self) -> bool:
        return self._input.shape[3] == 3 and self._input.shape[1] != 3

    def _fixed_size(self, size: int | Sequence[int] | None) -> tuple[int, int] | None:
        """(H, W) of the input; None if it follows the image."""
        shape = self._input.shape
        own = shape[1:3] if self._channels_last else shape[2:]
        own = [side if isinstance(side, int) and side > 0 else None for side in own]
        if size is None:
            if None not in own:
                return tuple(own)
            if own != [None, None]:
                raise ConfigError(
                    f'distill.expert.size: {self.file} takes {shape}; give (height, width)'
                )
            return None
        wanted = (size, size) if isinstance(size, int) else tuple(size)
        if any(side not in (None, asked) for side, asked in zip(own, wanted)):
            raise ConfigError(
                f'distill.expert.size={size}: {self.file} takes {shape}; remove the key'
            )
        return wanted

    def to(self, device: torch.device) -> OnnxExpert:
        """Follow the trained model to its device."""
        device = torch.device(device)
        if device != self.device:
            self.device = device
            self._open()
        return self

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`VisionExpert.fingerprint`."""
        settings = {key: getattr(self, key) for key in (*_FEATURE, *_PREPROCESSING)}
        found = self.fingerprint_of(model=self.file, **settings)
        found['preprocessing']['size'] = list(self.size) if self.size else 'of the image'
        return found

    @classmethod
    def fingerprint_of(cls, **settings: Any) -> dict[str, Any]:
        """See :meth:`VisionExpert.fingerprint_of`."""
        bound = inspect.signature(cls).bind(**settings)
        bound.apply_defaults()
        values = bound.arguments
        if isinstance(values['size'], int):
            values['size'] = [values['size']] * 2
        feature = {key: values[key] for key in _FEATURE}
        if values['keep_ratio']:
            # Caches made with a cut between whole cells lie up to half a cell beside the image.
            feature['cut'] = 'inside cells'
        return plain(
            dict(
                expert=cls.__name__,
                weights_sha256=weights_sha256(Path(values['model'])),
                feature=feature,
                preprocessing={key: values[key] for key in _PREPROCESSING},
            )
        )

    @torch.no_grad()
    def __call__(self, data_samples: Sequence[PixelDataSample]) -> list[Tensor | None]:
        """See :class:`VisionExpert`; images are taken one by one, their sizes differ.

        Raises:
            BadSampleError: The image was not kept in the sample and its file cannot be read.
            ConfigError: The model fails at this size, or the tensor is not a dense map.
        """
        return [
            self._map(original_image(sample)) if has_image(sample) else None
            for sample in data_samples
        ]

    def _map(self, image: Tensor) -> Tensor:
        pixels, filled = self._prepare(image.permute(1, 2, 0).numpy())
        height, width = pixels.shape[:2]
        batch = pixels if self._channels_last else pixels.transpose(2, 0, 1)
        batch = np.ascontiguousarray(batch[None], _TYPES[self._input.type])
        try:
            [array] = self._session.run(None, {self._input.name: batch})
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise ConfigError(
                f'distill.expert: {self.file} fails on an input of {height}x{width} '
                f'({first_line(error)}); set size or multiple to what it was made '
                'for'
            ) from error
        dense = torch.from_numpy(self._dense(array, height, width)).float()
        shares = filled[0] / height, filled[1] / width
        return _part_of_the_image(dense, shares).to(self.device)

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Input ``(H,W,3)`` float32, and the (height, width) of it that the image fills."""
        original = image.shape[:2]
        height, width = self.size or (
            -(-side // self.multiple) * self.multiple for side in original
        )
        filled = (height, width)
        if self.keep_ratio:
            scale = min(height / original[0], width / original[1])
            # A dynamic input is at least as large as the image, which then stays as it is.
            scale = scale if self.size else 1.0
            filled = tuple(max(1, round(side * scale)) for side in original)
        image = np.asarray(Image.fromarray(image).resize(filled[::-1], _RESAMPLE[self.resample]))
        if self.channels == 'bgr':
            image = image[..., ::-1]
        pixels = np.zeros((height, width, 3), np.float32)
        pixels[: filled[0], : filled[1]] = (
            image * np.float32(self.max_value / 255) - np.float32(self.mean)
        ) / np.float32(self.std)
        return pixels, filled

    def _dense(self, array: np.ndarray, height: int, width: int) -> np.ndarray:
        """Map ``(C,h,w)`` of the tensor in whatever layout."""
        rank = 3 if self.layout == 'tokens' else 4
        if array.ndim != rank or array.shape[0] != 1:
            raise ConfigError(
                f'distill.expert.output: {self.output} of {self.file} has the shape {array.shape}, '
                f'which is not a dense map in layout={self.layout!r}; the layouts are nchw '
                '(1,C,h,w), nhwc (1,h,w,C) and tokens (1,N,C)'
            )
        if self.layout == 'nchw':
            return array[0]
        if self.layout == 'nhwc':
            return np.ascontiguousarray(array[0].transpose(2, 0, 1))
        rows, columns = height // self.patch_size, width // self.patch_size
        if array.shape[1] != rows * columns + self.prefix_tokens:
            raise ConfigError(
                f'distill.expert.patch_size={self.patch_size}: an input of {height}x{width} makes '
                f'{rows}x{columns} patches, with prefix_tokens={self.prefix_tokens} in front, but '
                f'{self.output} has {array.shape[1]} tokens'
            )
        tokens = array[0, self.prefix_tokens :]
        return np.ascontiguousarray(tokens.T.reshape(-1, rows, columns))


def _part_of_the_image(dense: Tensor, shares: tuple[float, float]) -> Tensor:
    """Cut a map ``(C,h,w)`` to the shares (of height and width) that the image fills.

    Where the image ends inside a cell, the cells are interpolated: a cut between whole cells would
    stretch the map by up to half a cell.
    """
    filled = [side * share for side, share in zip(dense.shape[1:], shares)]
    rows, columns = (max(1, round(cells)) for cells in filled)
    if filled == [rows, columns]:
        return dense[:, :rows, :columns]
    down, right = shares
    corner = torch.tensor([[[right, 0, right - 1], [0, down, down - 1]]])
    grid = F.affine_grid(corner, [1, 1, rows, columns], align_corners=False)
    return F.grid_sample(dense[None], grid, padding_mode='border', align_corners=False)[0]
