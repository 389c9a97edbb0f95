from collections import Counter
from itertools import islice
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.compat.xtuner import LengthGroupedSampler
from pixelsail_mm.datasets.mixing import DrawIndexSampler

MODULE = 'pixelsail_mm.datasets.mixing.draw_index_sampler'
sizes = st.integers(1, 40)
batches = st.integers(1, 5)
worlds = st.integers(1, 4)


class Items:
    def __init__(self, size):
        self.length = [1 + 7 * index % 11 for index in range(size)]

    def __len__(self):
        return len(self.length)


def make(size, batch=1, rank=0, world=1, offset=0, seed=3, order=None):
    with patch(f'{MODULE}.get_dist_info', return_value=(rank, world)):
        sampler = DrawIndexSampler(Items(size), order, batch_size=batch, seed=seed)
    sampler.start_at(offset)
    return sampler


def interleave(size, batch, world, iters, **kwargs):
    """Draws of all ranks in the order of the stream."""
    ranks = [iter(make(size, batch, rank, world, **kwargs)) for rank in range(world)]
    return [draw for _ in range(iters) for rank in ranks for draw in islice(rank, batch)]


@given(size=sizes, batch=batches, world=worlds)
def test_every_item_comes_once_per_epoch_over_all_ranks(size, batch, world):
    iters = -(-3 * size // (batch * world))
    draws = interleave(size, batch, world, iters)[: 3 * size]
    for epoch in range(3):
        part = draws[epoch * size : (epoch + 1) * size]
        assert sorted(part) == list(range(epoch * size, (epoch + 1) * size))


@given(size=sizes, batch=batches, world=worlds)
def test_processes_see_what_one_process_sees_when_it_accumulates(size, batch, world):
    single = list(islice(make(size, batch), 4 * batch * world))
    assert interleave(size, batch, world, 4) == single


@given(size=sizes, batch=batches, world=worlds, done=st.integers(0, 30))
def test_starting_at_an_offset_equals_slicing(size, batch, world, done):
    whole = interleave(size, batch, world, done + 3)
    offset = done * batch * world
    assert interleave(size, batch, world, 3, offset=offset) == whole[offset:]


@given(size=sizes, batch=batches, world=worlds)
def test_length_is_whole_iterations_that_cover_an_epoch(size, batch, world):
    lengths = {len(make(size, batch, rank, world)) for rank in range(world)}
    (length,) = lengths
    assert length % batch == 0
    assert 0 <= length * world - size < batch * world


def test_epochs_have_different_orders_and_the_seed_matters():
    draws = list(islice(make(30), 60))
    items = [draw % 30 for draw in draws]
    assert items[:30] != items[30:]
    assert list(islice(make(30, seed=4), 30)) != draws[:30]


def test_unshuffled_inner_sampler_keeps_the_order():
    order = dict(type='DefaultSampler', shuffle=False)
    assert list(islice(make(4, order=order), 9)) == list(range(9))


@pytest.mark.parametrize('size', [1, 3, 64])
def test_length_grouped_order_covers_and_agrees_between_world_sizes(size):
    def order(window):
        return dict(type='LengthGroupedSampler', per_device_batch_size=window)

    single = list(islice(make(size, order=order(4)), 2 * size))
    assert Counter(draw % size for draw in single) == Counter(list(range(size)) * 2)
    # 1 process x accumulation 4 and 2 processes x accumulation 2: the same groups of four.
    names = LengthGroupedSampler.__init__.__globals__
    with patch.dict(names, get_dist_info=lambda: (0, 2)):
        double = interleave(size, 1, 2, size, order=order(2))
    assert double == single


def test_length_grouped_neighbours_have_similar_lengths():
    sampler = make(64, order=dict(type='LengthGroupedSampler', per_device_batch_size=4))
    lengths = [sampler._order.length[draw % 64] for draw in islice(sampler, 64)]
    jumps = sum(abs(a - b) for a, b in zip(lengths, lengths[1:])) / 63
    plain = [Items(64).length[draw % 64] for draw in islice(make(64), 64)]
    assert jumps < 0.6 * sum(abs(a - b) for a, b in zip(plain, plain[1:])) / 63


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match='is empty'):
        make(0)


def test_sampler_without_a_global_order_is_refused():
    with pytest.raises(TypeError, match='InfiniteSampler cannot be resumed'):
        make(4, order=dict(type='InfiniteSampler'))
