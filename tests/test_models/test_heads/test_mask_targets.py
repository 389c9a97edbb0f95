"""True masks at the resolution of the logits: where they lie, and what a head learns from them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelsail_mm.datasets.transforms.grid import target_size
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.heads import SegTokenMaskHead
from pixelsail_mm.models.heads.mask_targets import RESIZE_MODES, resize_targets


def _shapes(size, cell, seed, count=16):
    """Ellipses and rectangles ``(count,H,W)`` of at least two cells' radius, at any place."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    masks = []
    for number in range(count):
        radii = [rng.uniform(min(2.0 * step, side / 4), side / 3) for step, side in zip(cell, size)]
        centre = [rng.uniform(radius, side - radius) for radius, side in zip(radii, size)]
        y, x = ((axis - c) / r for axis, c, r in zip((rows, columns), centre, radii))
        masks.append(y**2 + x**2 < 1 if number % 2 else np.maximum(abs(y), abs(x)) < 1)
    return torch.from_numpy(np.stack(masks))


def _centroids(masks):
    masks = masks.float()
    return torch.stack(
        [
            (masks.sum(other) * (torch.arange(masks.shape[axis]) + 0.5)).sum(1) / masks.sum((1, 2))
            for axis, other in ((1, 2), (2, 1))
        ],
        dim=1,
    )


def _learn(head, masks, grid, steps=60):
    """Logits that the head's own losses make of free parameters."""
    logits = torch.zeros(len(masks), *grid, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        (sum(head.loss_by_logits([logits], [masks]).values()) * logits[0].numel()).backward()
        optimizer.step()
    return logits.detach()


def _offset(head, size, patch, stride, seed):
    """How far learned masks lie from the true ones: mean (rows, columns), in cells."""
    width, height = target_size(size[1], size[0], patch)
    grid = (height // stride, width // stride)
    cell = torch.tensor(size) / torch.tensor(grid)
    masks = _shapes(size, cell.tolist(), seed)
    found, _ = head.predict_by_logits(_learn(head, masks, grid), size)
    return ((_centroids(found) - _centroids(masks)) / cell).mean(0)


sizes = st.tuples(st.integers(40, 130), st.integers(40, 130))
strides = st.sampled_from([(8, 1), (8, 2), (8, 4), (16, 2), (16, 4), (14, 7), (16, 8), (10, 5)])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=sizes, patch_and_stride=strides, seed=st.integers(0, 2**16))
def test_learned_whole_masks_lie_on_the_true_ones(size, patch_and_stride, seed):
    head = SegTokenMaskHead(4, 4, embed_channels=4, num_points=None)
    assert _offset(head, size, *patch_and_stride, seed).abs().max() < 0.1


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=sizes, patch_and_stride=strides, seed=st.integers(0, 2**16))
def test_masks_learned_from_points_lie_on_the_true_ones(size, patch_and_stride, seed):
    torch.manual_seed(seed)
    head = SegTokenMaskHead(4, 4, embed_channels=4, num_points=1024)
    assert _offset(head, size, *patch_and_stride, seed).abs().max() < 0.1


def test_the_release_shifts_masks_down_and_right():
    """What the property above excludes: with the release's rule it fails by far."""
    head = SegTokenMaskHead(4, 4, embed_channels=4, num_points=None, target_resize='nearest')
    assert (_offset(head, (64, 80), 8, 4, 0) > 0.3).all()


@pytest.mark.parametrize(
    'size, grid', [((6, 10), (3, 5)), ((7, 9), (4, 5)), ((5, 3), (10, 4)), ((11, 4), (3, 4))]
)
def test_area_is_the_share_of_each_cell(size, grid):
    """Checked on a grid so fine that pixels and cells are both whole there."""
    masks = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) > 0.5
    fine = masks.repeat_interleave(grid[0], 1).repeat_interleave(grid[1], 2).float()
    expected = F.avg_pool2d(fine, size)
    torch.testing.assert_close(resize_targets(masks, grid), expected, atol=1e-6, rtol=0)


def test_area_is_not_rounded_under_autocast():
    masks = torch.ones(1, 7, 7, dtype=torch.bool)
    masks[0, :, 4:] = False
    with torch.autocast('cpu', torch.bfloat16):
        target = resize_targets(masks, (3, 3))
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, resize_targets(masks, (3, 3)), atol=0, rtol=0)


@pytest.mark.parametrize('mode', RESIZE_MODES)
def test_every_mode_keeps_masks_that_already_fit(mode):
    masks = torch.rand(2, 5, 4) > 0.5
    assert torch.equal(resize_targets(masks, (5, 4), mode), masks.float())


@pytest.mark.parametrize('dice', [0.5, 3.0])
def test_cells_covered_by_more_than_half_become_part_of_the_mask(dice):
    """Cross entropy and dice, in the recipe's and the small models' weights, take soft targets."""
    head = SegTokenMaskHead(
        4,
        4,
        embed_channels=4,
        num_points=None,
        loss_dice=dict(
            type='DiceLoss',
            use_sigmoid=True,
            activate=True,
            reduction='mean',
            naive_dice=True,
            eps=1.0,
            loss_weight=dice,
        ),
    )
    masks = _shapes((96, 80), (4, 4), seed=3)
    target = resize_targets(masks, (24, 20))
    logits = _learn(head, masks, (24, 20))
    clear = (target - 0.5).abs() > 0.1
    assert torch.equal(logits[clear] > 0, target[clear] > 0.5)
    assert (target[~clear] > 0).any()


def test_unknown_mode_is_named():
    with pytest.raises(ConfigError, match="target_resize='cubic'.*'nearest-exact'"):
        SegTokenMaskHead(4, 4, target_resize='cubic')
