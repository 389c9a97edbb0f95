"""Feature maps of the perfect expert."""

import numpy as np
import torch
from pycocotools import mask as coco_mask

from pixelsail_mm.models.experts import CachedExpert
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.worlds.shapes_world.expert_maps import (
    AMPLITUDES,
    CHANNELS,
    SCALE,
    STRIDE,
    expert_map,
    write_expert_map,
)


def item(top, left, side, **attributes):
    mask = np.zeros((32, 32), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return dict(attributes=attributes, rle=coco_mask.encode(np.asfortranarray(mask)))


LOOKS = dict(kind='star', colour='red', texture='plain', size='small')
OBJECTS = [item(0, 0, 8, **LOOKS), item(16, 16, 6, **{**LOOKS, 'colour': 'blue'})]


def test_share_of_every_cell():
    feature = expert_map(OBJECTS, 32)
    assert feature.shape == (len(CHANNELS), 32 // STRIDE, 32 // STRIDE)
    red, blue, kind = (feature[CHANNELS.index(name)] for name in ('red', 'blue', 'star'))
    full = AMPLITUDES['red'] / SCALE
    assert (red[:2, :2] == full).all() and red.sum() == 4 * full
    assert blue[4, 4] == full and blue[5, 5] == np.rint(full / 4)
    assert np.array_equal(red + blue, feature[CHANNELS.index('object')])
    assert kind[0, 0] == AMPLITUDES['star'] / SCALE and np.array_equal(kind > 0, red + blue > 0)
    assert feature[CHANNELS.index('circle')].sum() == 0


def test_coordinates_tell_where_the_object_is():
    feature = expert_map(OBJECTS, 32) * SCALE
    column, row = (feature[CHANNELS.index(name)] for name in ('column', 'row'))
    # The first object covers pixels 0 to 7: its centre is at 4 of 32, a quarter from the left.
    assert column[0, 0] == row[1, 1] == -0.75 * AMPLITUDES['column']
    # The second covers 16 to 21, centre 19 of 32.
    assert (
        column[4, 4]
        == row[4, 4]
        == np.rint((2 * 19 / 32 - 1) * AMPLITUDES['column'] / SCALE) * SCALE
    )
    assert column[0, 7] == 0


def test_cached_expert_reads_what_is_written(tmp_path):
    write_expert_map(tmp_path / 'expert' / 'train' / '3.npz', OBJECTS, 32)
    expert = CachedExpert(str(tmp_path / 'expert'), str(tmp_path / 'images'))
    sample = PixelDataSample(metainfo=dict(img_path=str(tmp_path / 'images/train/3.png')))
    expected = torch.from_numpy(expert_map(OBJECTS, 32)).float() * SCALE
    torch.testing.assert_close(expert([sample])[0], expected)
