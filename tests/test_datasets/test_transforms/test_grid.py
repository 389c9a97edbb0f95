"""target_size, area_size, mask_to_patches and ResizeToGrid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets.transforms import ResizeToGrid, area_size, mask_to_patches, target_size

sides = st.integers(1, 5000)
patches = st.sampled_from([8, 14, 16, 32])


@given(sides, sides, patches, st.integers(32, 2048))
def test_target_size_properties(width, height, patch, max_size):
    new_width, new_height = target_size(width, height, patch, max_size)
    assert new_width % patch == new_height % patch == 0
    assert patch <= min(new_width, new_height) and max(new_width, new_height) <= max_size
    # Aspect ratio within one patch; the long side stays the long side.
    new_long, new_short = (new_width, new_height) if width >= height else (new_height, new_width)
    assert new_long >= new_short
    exact_short = new_long * min(width, height) / max(width, height)
    assert exact_short - 1 < new_short < exact_short + patch + 1
    # Small images are not enlarged beyond rounding.
    assert new_long < max(width, height) + patch


@given(sides, sides, patches)
def test_target_size_is_symmetric(width, height, patch):
    assert target_size(width, height, patch) == target_size(height, width, patch)[::-1]


@pytest.mark.parametrize(
    'size, expected',
    [
        ((1, 1), (16, 16)),
        ((10000, 2), (1024, 16)),
        ((2, 10000), (16, 1024)),
        ((96, 96), (96, 96)),
        ((97, 96), (112, 112)),
        ((640, 480), (640, 480)),
        ((2000, 1000), (1024, 512)),
    ],
)
def test_target_size_examples(size, expected):
    assert target_size(*size, 16) == expected


def test_max_size_is_rounded_down_to_whole_patches():
    assert target_size(500, 500, 16, 100) == (96, 96)


@pytest.mark.parametrize('arguments', [(0, 5, 16), (5, 0, 16), (5, 5, 0), (5, 5, 16, 15)])
def test_target_size_rejects(arguments):
    with pytest.raises(ValueError, match='target_size'):
        target_size(*arguments)


@pytest.mark.parametrize('patch, max_size', [(0, 1024), (32, 16)])
def test_resize_rejects_impossible_settings(patch, max_size):
    with pytest.raises(ValueError, match='target_size'):
        ResizeToGrid(patch, max_size)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_point_flags_its_patch(width, height, x, y):
    row, col = int(y * height), int(x * width)
    mask = np.zeros((height, width), bool)
    mask[row, col] = True
    new_width, new_height = target_size(width, height, 16)
    flags = mask_to_patches(mask, (new_height // 16, new_width // 16), 16)
    expected = [
        int((row + 0.5) / height * flags.shape[0]),
        int((col + 0.5) / width * flags.shape[1]),
    ]
    assert np.argwhere(flags).tolist() == [expected]


@given(st.integers(1100, 4000), st.booleans(), st.integers(0, 1099))
def test_a_thin_mask_never_vanishes(side, horizontal, position):
    mask = np.zeros((side, 64), bool) if horizontal else np.zeros((64, side), bool)
    if horizontal:
        mask[position] = True
    else:
        mask[:, position] = True
    new_width, new_height = target_size(mask.shape[1], mask.shape[0], 16)
    assert mask_to_patches(mask, (new_height // 16, new_width // 16), 16).any()


def test_a_vanishing_mask_keeps_the_patch_at_its_centre():
    """The mask pixel nearest to the mean decides: the mean itself (x = 1001) is outside.

    Reduced four times, the nearest neighbour keeps the columns x = 4 i + 2 only.
    """
    mask = np.zeros((64, 4096), bool)
    mask[:, [0, 1, 3, 4000]] = True
    assert np.argwhere(mask_to_patches(mask, (1, 64), 16)).tolist() == [[0, 0]]
    mask[:, 2] = True
    mask[:, 4002] = True
    assert np.argwhere(mask_to_patches(mask, (1, 64), 16)).tolist() == [[0, 0], [0, 62]]


def test_an_empty_mask_has_no_patches():
    assert not mask_to_patches(np.zeros((40, 50), bool), (3, 4), 16).any()
    assert not mask_to_patches(np.zeros((48, 64), bool), (3, 4), 16).any()


def test_flags_without_resize():
    mask = np.zeros((48, 64), bool)
    mask[15:17, 32:34] = True
    assert np.argwhere(mask_to_patches(mask, (3, 4), 16)).tolist() == [[0, 2], [1, 2]]


def _resized(height, width, patch=16, **prompts):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return image, ResizeToGrid(patch)(dict(img=image, **prompts))


@pytest.mark.parametrize(
    'height, width, grid', [(1, 1, (1, 1)), (10000, 2, (64, 1)), (33, 50, (3, 4)), (96, 96, (6, 6))]
)
def test_resize_shapes(height, width, grid):
    _, results = _resized(height, width)
    assert results['grid'] == grid
    assert results['image'].shape == (3, grid[0] * 16, grid[1] * 16)
    assert results['image'].dtype == np.uint8 and results['image'].flags.c_contiguous
    assert results['prompt_map'].shape == grid and (results['prompt_map'] == -2).all()
    assert results['prompt_map'].dtype == np.int64


def test_an_image_of_whole_patches_is_kept():
    image, results = _resized(48, 64)
    assert np.array_equal(results['image'], image.transpose(2, 0, 1))


def test_without_an_image():
    results = ResizeToGrid()(dict(img=None))
    assert results['image'] is None and results['grid'] == (0, 0)
    assert results['prompt_map'].shape == (0, 0)


def test_later_prompts_overwrite_earlier_ones():
    masks = np.zeros((2, 48, 64), bool)
    masks[0, :32, :32] = True
    masks[1, 16:32, 16:48] = True
    _, results = _resized(48, 64, prompt_masks=masks, prompt_ids=[7, 0])
    assert results['prompt_map'].tolist() == [[7, 7, -2, -2], [7, 0, 0, -2], [-2] * 4]


@given(st.data())
def test_prompt_map_holds_only_given_ids(data):
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    ids = data.draw(st.lists(st.integers(0, 14), max_size=4, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    masks = rng.random((len(ids), height, width)) < 0.1
    _, results = _resized(height, width, prompt_masks=masks, prompt_ids=ids)
    assert set(results['prompt_map'].ravel().tolist()) <= {-2, *ids}
    if ids and masks[-1].any():
        assert ids[-1] in results['prompt_map']


@pytest.mark.parametrize(
    'size, max_size, expected',
    [
        # 25 x 32 = 800: a square keeps its shape whatever its size.
        ((800, 800), 800, (800, 800)),
        ((57, 57), 800, (800, 800)),
        ((4000, 4000), 800, (800, 800)),
        # sqrt(640 * 480) = 554.26; 640 / 0.6928 / 32 = 28.87, 480 / 0.6928 / 32 = 21.65, both up.
        ((640, 480), 800, (29 * 32, 22 * 32)),
        ((480, 640), 800, (22 * 32, 29 * 32)),
        # Four to one: 800 * 2 = 1600 = 50 patches exactly, 800 / 2 = 400 = 12.5 patches.
        ((1600, 400), 800, (1600, 416)),
        ((16, 4), 800, (1600, 416)),
        # 1600 * 2 and 1600 / 2.
        ((1600, 400), 1600, (3200, 800)),
        # Never nothing: 800 / sqrt(10000) = 8 pixels high, 800 * 100 = 80000 wide.
        ((10000, 1), 800, (80000, 32)),
    ],
)
def test_area_size_examples(size, max_size, expected):
    assert area_size(*size, 32, max_size) == expected


@given(sides, sides, patches, st.integers(32, 2048))
def test_area_size_properties(width, height, patch, max_size):
    new_width, new_height = area_size(width, height, patch, max_size)
    assert new_width % patch == new_height % patch == 0 and min(new_width, new_height) >= patch
    # Each side is rounded up, by less than a patch; nothing else changes area or aspect ratio.
    for new, exact in (
        (new_width, max_size * (width / height) ** 0.5),
        (new_height, max_size * (height / width) ** 0.5),
    ):
        assert exact * (1 - 1e-9) <= new < exact * (1 + 1e-9) + patch
    assert area_size(height, width, patch, max_size) == (new_height, new_width)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 50))
def test_area_size_depends_on_the_aspect_ratio_only(width, height, factor):
    assert area_size(width, height, 32, 800) == area_size(factor * width, factor * height, 32, 800)


def test_resize_by_area():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    mask = np.zeros((1, 48, 64), bool)
    mask[0, :12, :16] = True
    results = ResizeToGrid(32, 128, rule='area', interpolation='bicubic')(
        dict(img=image, prompt_masks=mask, prompt_ids=[3])
    )
    # 128 * sqrt(4 / 3) = 147.8 -> 160 and 128 * sqrt(3 / 4) = 110.9 -> 128.
    assert results['grid'] == (4, 5) and results['image'].shape == (3, 128, 160)
    # A quarter of each side: the first of 4 rows, 1.25 of 5 columns.
    assert np.argwhere(results['prompt_map'] == 3).tolist() == [[0, 0], [0, 1]]
    bilinear = ResizeToGrid(32, 128, rule='area')(dict(img=image))
    assert not np.array_equal(results['image'], bilinear['image'])


@pytest.mark.parametrize(
    'setting, message',
    [
        (dict(rule='volume'), 'rule'),
        (dict(interpolation='nearest'), 'interpolation'),
        (dict(rule='area', max_size=8), 'area_size'),
    ],
)
def test_unknown_rules(setting, message):
    with pytest.raises(ValueError, match=message):
        ResizeToGrid(**setting)


def test_a_lower_bound_for_one_image():
    stage = ResizeToGrid(patch_size=8, max_size=64)
    image = np.zeros((300, 451, 3), np.uint8)
    assert stage(dict(img=image, max_size=32))['grid'] == stage.grid(300, 451, 32) == (3, 4)
    # It never raises what the setting allows.
    assert stage(dict(img=image, max_size=1024))['grid'] == stage.grid(300, 451) == (6, 8)
