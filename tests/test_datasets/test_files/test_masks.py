"""decode_mask: every spelling, and every fault by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pixelsail_mm.datasets.files.masks import decode_mask, mask_to_rle
from pixelsail_mm.errors import BadSampleError
from tests.helpers.png_headers import png_header

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


def _half(side):
    half = _mask()
    half[:, :6] &= side == 0
    half[:, 6:] &= side == 1
    return mask_to_rle(half)


@pytest.mark.parametrize(
    'mask',
    [
        _compressed(False),
        _compressed(True),
        _uncompressed(),
        [[3, 2, 9, 2, 9, 5, 3, 5]],
        _mask(),
        _mask().astype(np.uint8) * 255,
        [_compressed(True)],
        [_uncompressed()],
        [_half(0), _half(1)],
        [_half(0), [6, 2, 9, 2, 9, 5, 6, 5]],
    ],
    ids=[
        'bytes',
        'str',
        'uncompressed',
        'polygon',
        'bool',
        'uint8',
        'list of one RLE',
        'list of one uncompressed',
        'list of RLEs',
        'RLE and polygon',
    ],
)
def test_spellings_agree(mask):
    decoded = decode_mask(mask, H, W, 'a.json', 'masks[0]')
    assert decoded.dtype == bool and np.array_equal(decoded, _mask())


def test_overlapping_polygons_are_joined():
    parts = [[3, 2, 7, 2, 7, 5, 3, 5], [5, 2, 9, 2, 9, 5, 5, 5]]
    assert np.array_equal(decode_mask(parts, H, W, None, 'm'), _mask())


@given(st.integers(0, 2**32 - 1))
def test_run_lengths_are_those_of_coco(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 40, 2)) < rng.choice((0, 0.02, 0.5, 1))
    rle = mask_to_rle(mask)
    assert np.array_equal(decode_mask(rle, *mask.shape, None, 'm'), mask)
    as_bytes = dict(rle, counts=rle['counts'].encode())
    assert np.array_equal(decode_mask(as_bytes, *mask.shape, None, 'm'), coco_mask.decode(rle))


@given(st.integers(0, 2**32 - 1))
def test_damaged_run_lengths_are_refused_or_fill_the_image(seed):
    """The decoder of COCO's API gives memory that nobody filled, or writes past its own."""
    rng = np.random.default_rng(seed)
    text = bytearray(_compressed(True)['counts'], 'ascii')
    text[rng.integers(len(text))] = rng.integers(48, 112)
    text = text[: rng.integers(1, len(text) + 1)]
    try:
        mask = decode_mask(dict(size=[H, W], counts=text.decode()), H, W, None, 'm')
    except BadSampleError:
        return
    assert coco_mask.area(mask_to_rle(mask)) == mask.sum() and mask.shape == (H, W)


def test_no_polygon_is_an_empty_mask():
    assert not decode_mask([], H, W, None, 'm').any()


@pytest.mark.parametrize(
    'mask, reason',
    [
        (np.zeros((W, H), bool), r'mask size \(12, 8\).*\(8, 12\)'),
        (np.zeros((H, W, 3), bool), 'mask size'),
        (dict(size=[W, H], counts=[H * W]), r'size \[12, 8\]'),
        (dict(size=[H, W]), 'needs counts'),
        (dict(counts=[H * W]), 'needs counts and size'),
        (dict(size=[H, W], counts=[5]), 'sum to 5, not 96'),
        (dict(size=[H, W], counts=[-1, 97]), 'broken RLE'),
        (dict(size=[H, W], counts=None), 'broken RLE'),
        (dict(size=[H, W], counts=[10**30, 1 - 10**30, H * W - 1]), 'broken RLE'),
        (dict(size=[H, W], counts=[H * W - 0.5, 0.5]), 'whole numbers'),
        (dict(size=None, counts='`3'), 'size None'),
        (dict(size=80, counts='`3'), 'size 80'),
        (dict(size=[H, W], counts=''), 'broken RLE .*empty'),
        (dict(size=[H, W], counts='o'), 'broken RLE .*cut off'),
        (dict(size=[H, W], counts='oooooooo0'), 'broken RLE'),
        (dict(size=[H, W], counts='3\x00'), 'broken RLE .*characters'),
        (dict(size=[H, W], counts='\ud800'), 'broken RLE'),
        ([[1, 2, 3, 4, 5, 1e12]], 'finite'),
        ([[1, 2, 3, 4, 5, 10**400]], 'at least 3 points'),
        ([[1, 2, 3, 4]], 'at least 3 points'),
        ([[1, 2, 3, 4, 5, 6, 7]], 'at least 3 points'),
        ([[1, 2, 3, 4, 5, float('nan')]], 'finite'),
        ([['a'] * 6], 'at least 3 points'),
        ([[[1, 2], [3, 4], [5, 6]]], 'flat list'),
        ('text', 'unknown mask type str'),
        (dict(union=3), 'RLE needs counts .*union'),
        (dict(png=3), 'RLE needs counts .*png'),
        ([dict(size=[W, H], counts=[H * W])], r'size \[12, 8\]'),
        ([_half(0), dict(size=[H, W])], 'needs counts'),
    ],
)
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
    assert np.array_equal(
        decode_mask(dict(png=str(tmp_path / 'mask.png')), H, W, None, 'm'), _mask()
    )


def test_one_png_is_decoded_once_for_all_its_segments(panoptic_png):
    from pixelsail_mm.datasets.files import masks

    before = masks._read_segment_ids.cache_info()
    for k in range(5):
        decode_mask(dict(png=panoptic_png, ids=[k]), H, W, None, 'm')
    after = masks._read_segment_ids.cache_info()
    assert after.misses == before.misses + 1 and after.hits == before.hits + 4


@pytest.mark.parametrize(
    'content, reason', [(None, 'no such mask file'), (b'no image', 'cannot be decoded')]
)
def test_a_bad_png_is_named(tmp_path, content, reason):
    path = tmp_path / 'bad.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSampleError, match=rf'bad\.png: masks\[1\]: {reason}'):
        decode_mask(dict(png=str(path), ids=[1]), H, W, 'a.json', 'masks[1]')


def test_a_png_of_another_size_is_refused_by_its_header(tmp_path):
    path = png_header(tmp_path / 'huge.png', 9000, 9000)  # decoding would find it cut off
    for ids in (None, [1]):
        with pytest.raises(BadSampleError, match=r'huge\.png: masks\[1\]: mask size \(9000'):
            decode_mask(dict(png=str(path), ids=ids), H, W, 'a.json', 'masks[1]')


def test_union_of_spellings(panoptic_png):
    parts = [[[3, 2, 6, 2, 6, 5, 3, 5]], dict(png=panoptic_png, ids=[65793]), []]
    assert np.array_equal(decode_mask(dict(union=parts), H, W, None, 'm'), _mask())
    with pytest.raises(BadSampleError, match=r'masks\[0\]\.union\[1\]: RLE needs'):
        decode_mask(dict(union=[[], dict(size=[1, 1], counts=[1])]), H, W, 'a.json', 'masks[0]')


def shape(x1, y1, x2, y2, ignore=False):
    """A rectangle that covers columns x1..x2 and rows y1..y2, ends included."""
    return dict(points=[[x1, y1], [x2, y1], [x2, y2], [x1, y2]], ignore=ignore)


def paint(shapes, part='target'):
    return decode_mask(dict(painted=shapes, part=part), H, W, 'a.json', 'masks[0]')


def test_painted_shapes_include_their_outline():
    assert np.array_equal(paint([shape(3, 2, 8, 4)]), _mask())
    # Fractions of a pixel are cut off, a line and a point are one pixel wide.
    assert np.array_equal(paint([shape(3.9, 2.9, 8.9, 4.9)]), _mask())
    line = paint([dict(points=[[1, 1], [5, 5]])])
    assert np.array_equal(line, np.eye(H, W, dtype=bool) & (np.arange(W) > 0) & (np.arange(W) < 6))
    assert np.argwhere(paint([dict(points=[[7, 3]])])).tolist() == [[3, 7]]


def test_small_shapes_are_painted_over_large_ones_whatever_their_order():
    large, middle, small = shape(0, 0, 9, 7), shape(1, 1, 6, 6, True), shape(2, 2, 3, 3)
    for shapes in ([large, middle, small], [small, middle, large], [middle, small, large]):
        target, ignore = paint(shapes), paint(shapes, 'ignore')
        assert ignore.sum() == 36 - 4 and target.sum() == 80 - 36 + 4
        assert target[2:4, 2:4].all() and not (target & ignore).any()


def test_of_two_shapes_of_one_size_the_later_one_is_on_top():
    left, right = shape(0, 0, 3, 3), shape(2, 0, 5, 3, True)
    assert paint([left, right]).sum() == 8 and paint([right, left]).sum() == 16


def test_size_is_what_is_visible_in_the_image():
    wide, inner = shape(-1000, 0, 1, 1), shape(0, 0, 4, 1, True)
    assert paint([wide, inner]).sum() == 4 and paint([wide, inner], 'ignore').sum() == 6


@pytest.mark.parametrize('shapes', [[], [shape(0, 0, 3, 3, True)], [shape(20, 20, 30, 30)]])
def test_painted_masks_may_be_empty(shapes):
    assert not paint(shapes).any()
    assert decode_mask(dict(painted=shapes), H, W, None, 'm').shape == (H, W)


points = st.lists(st.tuples(st.integers(-5, W + 5), st.integers(-5, H + 5)), min_size=3, max_size=6)


@given(outlines=st.lists(st.tuples(points, st.booleans()), max_size=4))
def test_painting_equals_a_pixel_by_pixel_account(outlines):
    shapes = [dict(points=[list(p) for p in outline], ignore=i) for outline, i in outlines]
    alone = [(paint([dict(s, ignore=False)]), s['ignore']) for s in shapes]
    top = np.zeros((H, W), int)
    for y in range(H):
        for x in range(W):
            over = [(-mask.sum(), k) for k, (mask, _) in enumerate(alone) if mask[y, x]]
            if over:
                top[y, x] = 2 if alone[max(over)[1]][1] else 1
    assert np.array_equal(paint(shapes), top == 1)
    assert np.array_equal(paint(shapes, 'ignore'), top == 2)


@given(outline=points)
def test_an_outline_covers_its_border(outline):
    """Pillow draws the same lines but for ties between two pixels."""
    mask = paint([dict(points=[list(p) for p in outline])])
    image = Image.new('L', (W, H))
    for start, end in zip(outline, [*outline[1:], outline[0]]):
        if start[0] == end[0] or start[1] == end[1]:
            ImageDraw.Draw(image).line([start, end], 1)
    assert mask[np.array(image) > 0].all()


@pytest.mark.parametrize(
    'mask, key, reason',
    [
        (dict(painted=3), 'm', 'needs a list of shapes'),
        (dict(painted=[], part='x'), 'm', "'x'"),
        (dict(painted=[[1]]), r'm.painted\[0\]', "needs 'points'"),
        (dict(painted=[{}]), r'm.painted\[0\]', "needs 'points'"),
        (dict(painted=[shape(0, 0, 1, 1), dict(points=[])]), r'm.painted\[1\]', 'at least one'),
        (dict(painted=[dict(points=[1, 2, 3, 4])]), r'painted\[0\]', 'finite numbers'),
        (dict(painted=[dict(points=[[1, 2], [3]])]), r'painted\[0\]', 'finite numbers'),
        (dict(painted=[dict(points=[[1, float('inf')]])]), r'painted\[0\]', 'finite numbers'),
        (dict(painted=[dict(points=[[1, 10**400]])]), r'painted\[0\]', 'finite numbers'),
        (dict(painted=[dict(points=[[1, float('nan')]])]), r'painted\[0\]', 'finite numbers'),
        (dict(painted=[dict(points=[['a', 'b']])]), r'painted\[0\]', 'finite numbers'),
    ],
)
def test_faulty_painted_masks_are_named(mask, key, reason):
    with pytest.raises(BadSampleError, match=rf'a\.json: .*{key}: .*{reason}'):
        decode_mask(mask, H, W, 'a.json', 'm')
