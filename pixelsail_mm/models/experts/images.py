"""The un-resized image of a sample, which is what experts see."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.structures import PixelDataSample


def original_image(sample: PixelDataSample) -> Tensor:
    """RGB uint8 ``(3,H,W)`` at the original size on the CPU, from memory or from the file.

    Raises:
        BadSampleError: The file cannot be read.
        ConfigError: The image was in memory only and was not kept in the sample.
    """
    image = sample.get('image')
    if image is not None:
        return image.cpu()
    from pixelsail_mm.datasets.transforms import LoadImage

    exif = 'rotate' if sample.get('exif_rotated') else 'ignore'
    # No limit: the pipeline's LoadImage, with the limit of its config, accepted this picture.
    pixels = LoadImage(math.inf, exif).transform(dict(img_path=sample.get('img_path')))['img']
    if pixels is None:
        raise ConfigError(
            f'sample {sample.get("sample_id")!r}: its image lives in memory only; '
            'experts need keep_image=True in PackPixelInputs'
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)
