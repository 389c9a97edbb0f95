"""ShapesWorld images: visible masks, exact segmentations."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from pixelsail_mm.datasets.files.masks import mask_to_rle
from pixelsail_mm.worlds.shapes_world.drawing import OUTLINES, shape_coverage, texture_pattern
from pixelsail_mm.worlds.shapes_world.presets import COLOURS, FULL, KINDS, MINI, TEXTURES
from pixelsail_mm.worlds.shapes_world.scene import draw_scene
from pixelsail_mm.worlds.shapes_world.segmentation import mask_bbox, mask_to_polygons


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), preset=st.sampled_from([MINI, FULL]))
def test_masks_are_visible_and_disjoint(seed, preset):
    scene = draw_scene(preset, np.random.default_rng(seed))
    size = preset.image_size
    masks = np.stack([item.mask for item in scene.objects])
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
    assert masks.sum(0).max() == 1
    assert preset.num_objects[0] <= len(masks) <= preset.num_objects[1]
    for item in scene.objects:
        assert item.area == item.mask.sum() >= preset.min_visible_area * size**2
        rows, cols = np.nonzero(item.mask)
        assert item.centroid == pytest.approx((cols.mean(), rows.mean()))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), preset=st.sampled_from([MINI, FULL]))
def test_plain_objects_show_their_colour_where_their_mask_is(seed, preset):
    scene = draw_scene(preset, np.random.default_rng(seed))
    names, values = list(COLOURS), np.array(list(COLOURS.values()), float)
    for item in scene.objects:
        inner = cv2.erode(item.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        if item.texture != 'plain' or inner.sum() < 4:
            continue
        seen = np.median(scene.image[inner], axis=0)
        assert names[np.abs(values - seen).sum(1).argmin()] == item.colour


def test_objects_occlude_each_other_in_the_full_preset():
    """Somewhere the visible mask is clearly smaller than the shape that was drawn."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(FULL, rng) for _ in range(40)]
    circles = [item for scene in scenes for item in scene.objects if item.kind == 'circle']
    shares = [item.area / (np.pi / 4 * item.extent**2) for item in circles]
    assert min(shares) < 0.8 < np.median(shares)


def test_a_preset_that_cannot_be_laid_out_is_explained(monkeypatch):
    monkeypatch.setattr('pixelsail_mm.worlds.shapes_world.scene._LAYOUT_TRIES', 2)
    crowded = replace(MINI, num_objects=(40, 40))
    with pytest.raises(RuntimeError, match='num_objects'):
        draw_scene(crowded, np.random.default_rng(0))


@pytest.mark.parametrize(
    'image_size, counts', [(16, None), (None, {'train': -1}), (None, {'dev': 4})]
)
def test_senseless_options_are_refused(image_size, counts):
    with pytest.raises(ValueError, match='image size|counts'):
        MINI.with_options(image_size, counts)


@pytest.mark.parametrize('kind', KINDS)
def test_shapes_are_centred_and_of_similar_size(kind):
    window, fill, edge = shape_coverage(kind, (32.0, 32.0), 14.0, 0.0, 64)
    canvas = np.zeros((64, 64))
    canvas[window] = fill
    rows, cols = np.nonzero(canvas > 0.5)
    assert abs(rows.mean() - 32) < 4 and abs(cols.mean() - 32) < 4
    assert 20 <= max(np.ptp(rows), np.ptp(cols)) + 1 <= 33
    assert 0 <= fill.min() and fill.max() == 1 and edge.max() > 0.5
    assert set(OUTLINES) == set(KINDS)


def test_a_ring_has_a_hole():
    window, fill, _ = shape_coverage('ring', (32.0, 32.0), 14.0, 0.0, 64)
    assert fill[32 - window[0].start, 32 - window[1].start] == 0


@pytest.mark.parametrize('texture', TEXTURES)
def test_textures(texture):
    window = (slice(0, 40), slice(0, 40))
    pattern = texture_pattern(texture, window, 14.0, np.random.default_rng(0))
    assert pattern.shape == (40, 40)
    assert 0 <= pattern.min() and pattern.max() <= 1
    assert (pattern.mean() == 0) == (texture == 'plain')


def test_unknown_texture_is_refused():
    with pytest.raises(ValueError, match='furry'):
        texture_pattern('furry', (slice(0, 4), slice(0, 4)), 3.0, np.random.default_rng(0))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), preset=st.sampled_from([MINI, FULL]))
def test_polygons_of_objects_are_pixel_exact(seed, preset):
    for item in draw_scene(preset, np.random.default_rng(seed)).objects:
        polygons = mask_to_polygons(item.mask)
        rles = coco_mask.frPyObjects(polygons, *item.mask.shape)
        assert (coco_mask.decode(coco_mask.merge(rles)) == item.mask).all()


@given(arrays(bool, (9, 12)))
def test_segmentations_of_any_mask(mask):
    assert (coco_mask.decode(mask_to_rle(mask)) == mask).all()
    polygons = mask_to_polygons(mask)
    if polygons is not None:
        rles = coco_mask.frPyObjects(polygons, *mask.shape)
        assert (coco_mask.decode(coco_mask.merge(rles)) == mask).all()
    if mask.any():
        assert mask_bbox(mask) == coco_mask.toBbox(mask_to_rle(mask)).tolist()
