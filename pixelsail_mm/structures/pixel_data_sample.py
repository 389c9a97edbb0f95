"""What travels beside the model inputs: ground truth, prompts and predictions."""

from __future__ import annotations

import torch
from mmengine.structures import BaseDataElement


def _tensor_field(name: str, dtype: torch.dtype, ndim: int, doc: str) -> property:
    """Property of a tensor field that checks dtype and number of dimensions when set."""
    private = f'_{name}'

    def getter(self):
        return getattr(self, private)

    def setter(self, value):
        if not isinstance(value, torch.Tensor) or value.dtype != dtype or value.ndim != ndim:
            got = (f'{value.dtype} {tuple(value.shape)}' if isinstance(value, torch.Tensor) else
                   type(value).__name__)
            raise TypeError(f'PixelDataSample.{name} must be a {dtype} tensor of {ndim} dimensions '
                            f'({doc}), got {got}')
        self._check_size(name, value)
        self.set_field(value, private, dtype=torch.Tensor)

    def deleter(self):
        delattr(self, private)

    return property(getter, setter, deleter, doc)


class PixelDataSample(BaseDataElement):
    """One sample: what is known about it, its ground truth and what the model predicts.

    Metainfo: ``img_path``, ``ori_shape`` ((H, W) in pixels; (0, 0) without an image), ``grid``
    ((h, w) in patches), ``sample_id``, ``dataset``, ``task``, ``question``, ``gt_text`` and all
    that the reader put into the record's ``meta``.

    Attributes:
        gt_masks: BoolTensor (n, H, W), target masks in ``[SEG]`` order.
        prompt_masks: BoolTensor (P, H, W), visual prompts, large to small.
        prompt_ids: LongTensor (P,), their ids K of ``<PromptK>``.
        image: ByteTensor (3, H, W), RGB at original size; only kept for experts.
        pred_text: Generated text.
        pred_masks: BoolTensor (n, H, W), predicted masks in ``[SEG]`` order; n may be 0.
        pred_scores: FloatTensor (n,), confidence of each predicted mask in [0, 1].

    Setting a field to another dtype, number of dimensions or image size raises an error that
    names the field.

    Examples:
        >>> import torch
        >>> sample = PixelDataSample(metainfo=dict(ori_shape=(4, 6), question='where?'))
        >>> sample.pred_masks = torch.zeros(1, 4, 6, dtype=torch.bool)
        >>> sample.pred_text = 'It is [SEG].'
        >>> 'pred_masks' in sample, 'gt_masks' in sample
        (True, False)
    """

    gt_masks = _tensor_field('gt_masks', torch.bool, 3, 'n, H, W at ori_shape')
    prompt_masks = _tensor_field('prompt_masks', torch.bool, 3, 'P, H, W at ori_shape')
    prompt_ids = _tensor_field('prompt_ids', torch.int64, 1, 'P')
    image = _tensor_field('image', torch.uint8, 3, '3, H, W at ori_shape')
    pred_masks = _tensor_field('pred_masks', torch.bool, 3, 'n, H, W at ori_shape')
    pred_scores = _tensor_field('pred_scores', torch.float32, 1, 'n')

    @property
    def pred_text(self) -> str:
        """Generated text."""
        return self._pred_text

    @pred_text.setter
    def pred_text(self, value: str) -> None:
        self.set_field(value, '_pred_text', dtype=str)

    @pred_text.deleter
    def pred_text(self) -> None:
        del self._pred_text

    def _check_size(self, name: str, value: torch.Tensor) -> None:
        """Reject maps that are not of the image's size."""
        shape = self.metainfo.get('ori_shape')
        if value.ndim == 3 and shape is not None and tuple(value.shape[1:]) != tuple(shape):
            raise ValueError(f'PixelDataSample.{name} has (H, W) = {tuple(value.shape[1:])}, but '
                             f'ori_shape of the sample is {tuple(shape)}')
