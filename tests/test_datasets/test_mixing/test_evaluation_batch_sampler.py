from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.runner import FlexibleRunner

from pixelsail_mm.datasets.mixing import EvaluationBatchSampler
from pixelsail_mm.errors import ConfigError

MODULE = 'pixelsail_mm.datasets.mixing.evaluation_batch_sampler'
sizes = st.integers(0, 40)
batches = st.integers(1, 7)
worlds = st.integers(1, 9)


def make(size, batch, rank=0, world=1):
    with patch(f'{MODULE}.get_dist_info', return_value=(rank, world)):
        return EvaluationBatchSampler(SimpleNamespace(dataset=range(size), shuffle=False), batch)


def ranks(size, batch, world):
    return [make(size, batch, rank, world) for rank in range(world)]


@given(size=sizes, batch=batches, world=worlds)
def test_the_batches_of_one_process_are_dealt_out_to_all(size, batch, world):
    alone = list(make(size, batch))
    assert sum(alone, []) == list(range(size))
    dealt = [part for parts in zip(*ranks(size, batch, world), strict=True) for part in parts]
    assert dealt[: len(alone)] == alone
    # What is left of the last round goes to repeats, fewer than there are processes.
    assert len(dealt) - len(alone) < world
    assert all(part in alone for part in dealt)


@given(size=sizes, batch=batches, world=worlds)
def test_numbers_and_lengths(size, batch, world):
    for rank, sampler in enumerate(ranks(size, batch, world)):
        parts = list(sampler)
        assert len(parts) == len(sampler)
        assert sum(map(len, parts)) == sampler.num_samples
        assert [list(sampler.batch(number)) for number in sampler.numbers] == parts
        assert [sampler.round(index)[rank] for index in range(len(sampler))] == sampler.numbers


def test_by_hand():
    # Batches 01 23 45 67 8 for two processes: the second one has to repeat one.
    assert [list(sampler) for sampler in ranks(9, 2, 2)] == [
        [[0, 1], [4, 5], [8]],
        [[2, 3], [6, 7], [0, 1]],
    ]
    # One batch for three.
    assert [list(sampler) for sampler in ranks(2, 4, 3)] == [[[0, 1]]] * 3


def test_shuffling_is_refused():
    for sampler in (SimpleNamespace(dataset=[0], shuffle=True), SimpleNamespace()):
        with pytest.raises(ConfigError, match='shuffle=False'):
            EvaluationBatchSampler(sampler, 1)


@pytest.mark.parametrize('size', [0, 5])
def test_in_a_data_loader_built_from_a_config(size):
    loader = FlexibleRunner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=0,
            dataset=list(range(size)),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_sampler=dict(type='pixelsail_mm.EvaluationBatchSampler'),
            collate_fn=dict(type='pseudo_collate'),
        ),
        seed=0,
    )
    assert [list(batch) for batch in loader] == [[0, 1], [2, 3], [4]][: -(-size // 2)]
    assert len(loader) == -(-size // 2)
