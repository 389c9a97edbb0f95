"""Data of a sample beside the model inputs: ground truth, prompts and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

# Predictions that have names of their own wherever they are returned.
_KNOWN_PREDICTIONS = ('pred_text', 'pred_masks', 'pred_scores', 'pred_token_ids')

# Field -> (dtype, shape in words); three-dimensional fields have the image's (H, W).
_ARRAY_FIELDS = {
    'gt_masks': ('bool', ('n', 'H', 'W')),
    'ignore_masks': ('bool', ('n', 'H', 'W')),
    'prompt_masks': ('bool', ('P', 'H', 'W')),
    'prompt_ids': ('int64', ('P',)),
    'image': ('uint8', ('3', 'H', 'W')),
    'pred_masks': ('bool', ('n', 'H', 'W')),
    'pred_scores': ('float32', ('n',)),
}


class PixelDataSample(BaseDataElement):
    """One sample: what is known about it, its ground truth and what the model predicts.

    Metainfo: ``img_path``, ``ori_shape`` ((H, W) in pixels; (0, 0) without an image), ``grid``
    ((h, w) in patches), ``sample_id``, ``dataset``, ``task``, ``question``, ``gt_text`` and all
    that the reader put into the record's ``meta``.

    Attributes:
        gt_masks: BoolTensor (n, H, W), target masks in ``[SEG]`` order.
        ignore_masks: BoolTensor (n, H, W), pixels that metrics do not count, for each target.
        prompt_masks: BoolTensor (P, H, W), visual prompts, large to small.
        prompt_ids: LongTensor (P,), their ids K of ``<PromptK>``.
        image: ByteTensor (3, H, W), RGB at original size; only kept for experts.
        pred_text: Generated text.
        pred_masks: BoolTensor (n, H, W), predicted masks in ``[SEG]`` order; n may be 0.
        pred_scores: FloatTensor (n,), confidence of each predicted mask in [0, 1].

    Heads may add ``gt_*`` and ``pred_*`` fields of their own.

    Raises:
        TypeError: A field is set to another type, dtype or number of dimensions.
        ValueError: A field's (H, W) is not ``ori_shape``.

    Examples:
        >>> import torch
        >>> sample = PixelDataSample(metainfo=dict(ori_shape=(4, 6), question='where?'))
        >>> sample.pred_masks = torch.zeros(1, 4, 6, dtype=torch.bool)
        >>> sample.pred_text = 'It is [SEG].'
        >>> 'pred_masks' in sample, 'gt_masks' in sample
        (True, False)
    """

    gt_masks: torch.Tensor
    ignore_masks: torch.Tensor
    prompt_masks: torch.Tensor
    prompt_ids: torch.Tensor
    image: torch.Tensor
    pred_text: str
    pred_masks: torch.Tensor
    pred_scores: torch.Tensor

    def further_predictions(self) -> dict[str, Any]:
        """Predictions of heads other than the mask head, by field name without ``pred_``."""
        return {
            key.removeprefix('pred_'): value
            for key, value in self.items()
            if key.startswith('pred_') and key not in _KNOWN_PREDICTIONS
        }

    def set_field(self, value: Any, name: str, dtype=None, field_type: str = 'data') -> None:
        """Set a field after checking it; every way of setting one leads here."""
        if field_type == 'data' and name in _ARRAY_FIELDS:
            self._check_array(name, value)
        elif name == 'pred_text' and not isinstance(value, str):
            raise TypeError(f'PixelDataSample.pred_text must be a str, got {type(value).__name__}')
        super().set_field(value, name, dtype, field_type)

    def _check_array(self, name: str, value: Any) -> None:
        dtype, axes = _ARRAY_FIELDS[name]
        got = type(value).__name__
        if isinstance(value, (torch.Tensor, np.ndarray)):
            if str(value.dtype).removeprefix('torch.') == dtype and value.ndim == len(axes):
                shape = self.get('ori_shape')
                if len(axes) == 3 and shape is not None and tuple(value.shape[1:]) != tuple(shape):
                    raise ValueError(
                        f'PixelDataSample.{name} has (H, W) = {tuple(value.shape[1:])}, but '
                        f'ori_shape of the sample is {tuple(shape)}'
                    )
                return
            got = f'{value.dtype} {tuple(value.shape)}'
        raise TypeError(
            f'PixelDataSample.{name} must be a {dtype} tensor of shape '
            f'({", ".join(axes)}), got {got}'
        )
