"""decode_mask: every spelling, and every fault by name."""

import numpy as np
import pytest
from PIL import Image
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


@pytest.fixture
def panoptic_png(tmp_path):
    """Segments 7 (left) and 65536 + 256 + 1 (right) over unlabelled pixels."""
    ids = np.zeros((H, W), int)
    ids[2:5, 3:6], ids[2:5, 6:9] = 7, 65536 + 256 + 1
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'panoptic.png')
    return str(tmp_path / 'panoptic.png')


def test_segments_of_a_panoptic_png(panoptic_png):
    left = decode_mask(dict(png=panoptic_png, ids=[7]), H, W, None, 'm')
    both = decode_mask(dict(png=panoptic_png, ids=[7, 65793]), H, W, None, 'm')
    assert left.sum() == 9 and left[2:5, 3:6].all()
    assert np.array_equal(both, _mask())
    assert not decode_mask(dict(png=panoptic_png, ids=[8]), H, W, None, 'm').any()


def test_png_without_ids_is_a_mask(tmp_path):
    Image.fromarray(_mask().astype(np.uint8) * 255).save(tmp_path / 'mask.png')
    assert np.array_equal(decode_mask(dict(png=str(tmp_path / 'mask.png')), H, W, None, 'm'),
                          _mask())


def test_one_png_is_decoded_once_for_all_its_segments(panoptic_png):
    from pixelsail_mm.datasets import masks
    before = masks._read_segment_ids.cache_info()
    for k in range(5):
        decode_mask(dict(png=panoptic_png, ids=[k]), H, W, None, 'm')
    after = masks._read_segment_ids.cache_info()
    assert after.misses == before.misses + 1 and after.hits == before.hits + 4


@pytest.mark.parametrize('content, reason', [(None, 'no such mask file'),
                                             (b'no image', 'cannot be decoded')])
def test_a_bad_png_is_named(tmp_path, content, reason):
    path = tmp_path / 'bad.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSampleError, match=rf'bad\.png: masks\[1\]: {reason}'):
        decode_mask(dict(png=str(path), ids=[1]), H, W, 'a.json', 'masks[1]')


def test_union_of_spellings(panoptic_png):
    parts = [[[3, 2, 6, 2, 6, 5, 3, 5]], dict(png=panoptic_png, ids=[65793]), []]
    assert np.array_equal(decode_mask(dict(union=parts), H, W, None, 'm'), _mask())
    with pytest.raises(BadSampleError, match=r'masks\[0\]\.union\[1\]: RLE needs'):
        decode_mask(dict(union=[[], dict(size=[1, 1], counts=[1])]), H, W, 'a.json', 'masks[0]')
