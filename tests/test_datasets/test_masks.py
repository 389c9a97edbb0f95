"""decode_mask: every spelling, and every fault by name."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pixelsail_mm.datasets.errors import BadSampleError
from pixelsail_mm.datasets.masks import decode_mask

H, W = 8, 12


def _mask():
    mask = np.zeros((H, W), bool)
    mask[2:5, 3:9] = True
    return mask


def _compressed(as_str):
    rle = coco_mask.encode(np.asfortranarray(_mask().astype(np.uint8)))
    return dict(rle, counts=rle['counts'].decode()) if as_str else rle


def _uncompressed():
    flat = _mask().ravel(order='F')
    borders = np.flatnonzero(np.diff(flat)) + 1
    return dict(size=[H, W], counts=np.diff([0, *borders, flat.size]).tolist())


@pytest.mark.parametrize('mask', [
    _compressed(False), _compressed(True), _uncompressed(), [[3, 2, 9, 2, 9, 5, 3, 5]],
    _mask(), _mask().astype(np.uint8) * 255,
], ids=['bytes', 'str', 'uncompressed', 'polygon', 'bool', 'uint8'])
def test_spellings_agree(mask):
    decoded = decode_mask(mask, H, W, 'a.json', 'masks[0]')
    assert decoded.dtype == bool and np.array_equal(decoded, _mask())


def test_overlapping_polygons_are_joined():
    parts = [[3, 2, 7, 2, 7, 5, 3, 5], [5, 2, 9, 2, 9, 5, 5, 5]]
    assert np.array_equal(decode_mask(parts, H, W, None, 'm'), _mask())


def test_no_polygon_is_an_empty_mask():
    assert not decode_mask([], H, W, None, 'm').any()


@pytest.mark.parametrize('mask, reason', [
    (np.zeros((W, H), bool), r'mask size \(12, 8\).*\(8, 12\)'),
    (np.zeros((H, W, 3), bool), 'mask size'),
    (dict(size=[W, H], counts=[H * W]), r'size \[12, 8\]'),
    (dict(size=[H, W]), 'needs counts'),
    (dict(counts=[H * W]), 'needs counts and size'),
    (dict(size=[H, W], counts=[5]), 'sum to 5, not 96'),
    (dict(size=[H, W], counts=[-1, 97]), 'broken RLE'),
    (dict(size=[H, W], counts=None), 'broken RLE'),
    ([[1, 2, 3, 4]], 'at least 3 points'),
    ([[1, 2, 3, 4, 5, 6, 7]], 'at least 3 points'),
    ([[1, 2, 3, 4, 5, float('nan')]], 'finite'),
    ([['a'] * 6], 'at least 3 points'),
    ([[[1, 2], [3, 4], [5, 6]]], 'flat list'),
    ('text', 'unknown mask type str'),
])
def test_faults_name_file_and_key(mask, reason):
    with pytest.raises(BadSampleError, match=reason) as error:
        decode_mask(mask, H, W, 'a.json', 'masks[3]')
    assert error.value.file == 'a.json' and error.value.key.startswith('masks[3]')
