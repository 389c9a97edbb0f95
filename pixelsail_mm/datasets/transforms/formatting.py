"""Last stage of every pipeline: arrays to tensors and a data sample."""

from __future__ import annotations

import numpy as np
import torch

from pixelsail_mm.datasets.transforms.loading import PixelTransform, Results, target_arrays
from pixelsail_mm.registry import TRANSFORMS
from pixelsail_mm.structures import PixelDataSample


@TRANSFORMS.register_module()
class PackPixelInputs(PixelTransform):
    """Pack a sample for ``pseudo_collate`` and the data preprocessor.

    Required keys: ``input_ids``, ``labels``, ``image``, ``grid``, ``prompt_map``, ``gt_masks``;
    optional ``prompt_masks``, ``prompt_ids``, ``ignore_masks``, ``meta``.

    Returns ``dict(inputs=..., data_samples=PixelDataSample)`` with ``inputs`` holding

    * ``input_ids``, ``labels``: LongTensor (L,)
    * ``turn_ids``: LongTensor (L,), only for independent turns
    * ``image``: ByteTensor (3, h*p, w*p) | None
    * ``prompt_map``: LongTensor (h, w) | None

    The sample's metainfo holds ``img_path``, ``ori_shape``, ``grid``, ``question``, ``gt_text``,
    ``dropped_turns``, ``exif_rotated`` (if the image was turned) and every key of the record's
    ``meta`` (``sample_id``, ``dataset``, ``task``, ...). Every array ``gt_*`` becomes a field of
    the sample, and so do ``ignore_masks``, aligned with ``gt_masks``.

    Args:
        keep_image: Keep the image at its original size in the sample, for the experts of
            distillation.

    Raises:
        TypeError: ``ignore_masks`` were not decoded; scores would silently count their pixels.
    """

    def __init__(self, keep_image: bool = False) -> None:
        self.keep_image = keep_image

    def transform(self, results: Results) -> dict:
        """Return the packed sample."""
        has_image = results['image'] is not None
        inputs = dict(
            input_ids=torch.from_numpy(results['input_ids']),
            labels=torch.from_numpy(results['labels']),
            image=torch.from_numpy(results['image']) if has_image else None,
            prompt_map=torch.from_numpy(results['prompt_map']) if has_image else None,
        )
        if 'turn_ids' in results:
            inputs['turn_ids'] = torch.from_numpy(results['turn_ids'])
        meta = dict(sample_id='', dataset='', task='')
        meta.update(results.get('meta', {}))
        meta.update(
            {k: results[k] for k in ('ori_shape', 'grid', 'question', 'gt_text', 'dropped_turns')}
        )
        meta['img_path'] = results.get('img_path')
        if 'exif_rotated' in results:
            meta['exif_rotated'] = results['exif_rotated']
        no_prompts = np.zeros((0, *results['ori_shape']), bool)
        fields = dict(
            **{key: torch.from_numpy(value) for key, value in target_arrays(results).items()},
            prompt_masks=torch.from_numpy(results.get('prompt_masks', no_prompts)),
            prompt_ids=torch.tensor(results.get('prompt_ids', []), dtype=torch.long),
        )
        if 'ignore_masks' in results:
            if not isinstance(results['ignore_masks'], np.ndarray):
                raise TypeError(
                    "the record has 'ignore_masks' that are not decoded; put "
                    "dict(type='LoadIgnoreMasks') behind LoadMasks in the pipeline"
                )
            # Turns that did not fit were dropped from the end, together with their targets.
            fields['ignore_masks'] = torch.from_numpy(
                results['ignore_masks'][: len(results['gt_masks'])]
            )
        if self.keep_image and has_image:
            fields['image'] = torch.from_numpy(
                np.ascontiguousarray(results['img'].transpose(2, 0, 1))
            )
        return dict(inputs=inputs, data_samples=PixelDataSample(metainfo=meta, **fields))
