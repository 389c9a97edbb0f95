"""PromptTypeAugment: rules of each kind, frequencies, reproducibility."""

from collections import Counter

import numpy as np
import pytest

from pixelsail_mm.datasets.transforms import PromptTypeAugment

H, W = 60, 80


def _disc(row=30, col=40, radius=20):
    rows, cols = np.mgrid[:H, :W]
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def _augment(mask, seed=0, kind='mask', **kwargs):
    masks = np.stack([mask, mask])
    results = PromptTypeAugment(**kwargs)(
        dict(prompt_masks=masks, prompt_kinds=[kind, kind], rng=np.random.default_rng(seed))
    )
    assert np.array_equal(masks, np.stack([mask, mask])), 'the input was changed'
    return results


def test_masks_can_be_kept():
    results = _augment(_disc(), probs=(1, 0, 0))
    assert np.array_equal(results['prompt_masks'][0], _disc())
    assert results['prompt_kinds'] == ['mask', 'mask']


def test_box_is_the_filled_tight_rectangle():
    results = _augment(_disc(), probs=(0, 1, 0))
    expected = np.zeros((H, W), bool)
    expected[10:51, 20:61] = True
    assert np.array_equal(results['prompt_masks'][0], expected)
    assert results['prompt_kinds'] == ['box', 'box']


def _points(mask, min_depth, n=60):
    points = set()
    for seed in range(n):
        results = _augment(mask, seed, probs=(0, 0, 1), min_depth=min_depth)
        assert results['prompt_kinds'] == ['point', 'point']
        assert results['prompt_masks'].sum((1, 2)).tolist() == [1, 1]
        points.update(map(tuple, np.argwhere(results['prompt_masks'].any(0)).tolist()))
    return points


def test_points_lie_deep_inside():
    points = _points(_disc(), min_depth=16)
    assert len(points) > 10
    assert all((r - 30) ** 2 + (c - 40) ** 2 < (21 - 16) ** 2 for r, c in points)


def test_a_shallow_mask_gives_its_deepest_pixel():
    assert _points(_disc(radius=3), min_depth=16) == {(30, 40)}


def test_the_image_border_is_not_background():
    """A half disc at the border is deepest at the border."""
    assert _points(_disc(row=0, radius=8), min_depth=16) == {(0, 40)}


def test_a_mask_of_the_whole_image_gives_any_pixel():
    assert len(_points(np.ones((H, W), bool), min_depth=16)) > 60


@pytest.mark.parametrize(
    'mask',
    [
        np.zeros((H, W), bool),
        _disc(col=15, radius=5) | _disc(col=60, radius=5),
        np.eye(H, W, dtype=bool)[:, :W],
    ],
    ids=['empty', 'two parts', 'diagonal (4-connectivity)'],
)
def test_masks_of_other_than_one_component_are_kept(mask):
    for probs in ((0, 1, 0), (0, 0, 1)):
        results = _augment(mask, probs=probs)
        assert np.array_equal(results['prompt_masks'][0], mask)
        assert results['prompt_kinds'] == ['mask', 'mask']


@pytest.mark.parametrize('kind', ['box', 'point'])
def test_boxes_and_points_of_the_record_stay(kind):
    results = _augment(_disc(), probs=(0, 0.5, 0.5), kind=kind)
    assert np.array_equal(results['prompt_masks'][1], _disc())
    assert results['prompt_kinds'] == [kind, kind]


def test_default_frequencies():
    transform, rng = PromptTypeAugment(), np.random.default_rng(0)
    masks = np.ones((2, 4, 5), bool)
    counts = Counter()
    for _ in range(1000):
        counts.update(
            transform(dict(prompt_masks=masks, prompt_kinds=['mask', 'mask'], rng=rng))[
                'prompt_kinds'
            ]
        )
    for kind, share in dict(mask=0.4, box=0.3, point=0.3).items():
        assert abs(counts[kind] / 2000 - share) < 0.04


def test_weights_are_normalised():
    a = [_augment(_disc(), seed, probs=(0.2, 0.4, 0.4))['prompt_kinds'] for seed in range(20)]
    b = [_augment(_disc(), seed, probs=(1, 2, 2))['prompt_kinds'] for seed in range(20)]
    assert a == b


def test_same_seed_same_result():
    a, b = _augment(_disc(), 5), _augment(_disc(), 5)
    assert np.array_equal(a['prompt_masks'], b['prompt_masks'])


@pytest.mark.parametrize('probs', [(0, 0, 0), (1, -1, 1), (1, 1), (float('nan'), 1, 1)])
def test_bad_weights(probs):
    with pytest.raises(ValueError, match='three weights'):
        PromptTypeAugment(probs)


def test_no_prompts():
    results = PromptTypeAugment()(
        dict(prompt_masks=np.zeros((0, H, W), bool), prompt_kinds=[], rng=np.random.default_rng(0))
    )
    assert results['prompt_masks'].shape == (0, H, W)
