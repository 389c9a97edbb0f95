"""Pixels that an evaluation must not count."""

from __future__ import annotations

from mmcv.transforms import BaseTransform

from pixelsail_mm.datasets.files.masks import decode_masks
from pixelsail_mm.datasets.transforms.loading import Results, source_of
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadIgnoreMasks(BaseTransform):
    """Decode the pixels to leave out of the evaluation, one mask per target mask.

    Required key: ``ori_shape``; optional ``ignore_masks`` (list of masks in any spelling, as long
    as ``masks``). Records without ``ignore_masks`` pass unchanged.

    Changed key: ``ignore_masks`` (bool (n, H, W), aligned with ``gt_masks``).

    Raises:
        BadSampleError: There are not as many masks as targets, or one cannot be decoded.
    """

    def transform(self, results: Results) -> Results:
        """Decode ``ignore_masks``, if there are any."""
        spellings = results.get('ignore_masks')
        if spellings is None:
            return results
        source, targets = source_of(results), results.get('masks') or []
        if len(spellings) != len(targets):
            raise BadSampleError(
                source,
                'ignore_masks',
                f'{len(spellings)} masks of pixels to '
                f'ignore for {len(targets)} target masks; give one for each, '
                'empty where nothing is ignored',
            )
        results['ignore_masks'] = decode_masks(
            spellings, *results['ori_shape'], source, 'ignore_masks'
        )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
