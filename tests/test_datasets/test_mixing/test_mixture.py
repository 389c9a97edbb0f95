"""Mixtures: exact shares, full coverage, draws beyond the epoch."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.datasets import MixtureDataset
from pixelsail_mm.datasets.mixing import DrawIndexSampler
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS


class Items:
    """Stand-in for a reader: remembers which draw was asked for."""

    def __init__(self, name, size):
        self.name, self.size, self.skipped = name, size, Counter({name: 1})
        self.modality_length = [100 * size + i for i in range(size)]

    def __len__(self):
        return self.size

    def __getitem__(self, idx):
        return self.name, idx


@pytest.fixture
def mix(monkeypatch):
    """Build a mixture of stand-ins with the given sizes."""
    monkeypatch.setattr(
        'pixelsail_mm.datasets.mixing.mixture.build_parts', lambda parts, *a, **k: parts
    )

    def build(*sizes, **options):
        return MixtureDataset([Items(i, size) for i, size in enumerate(sizes)], **options)

    return build


def test_without_shares_every_item_comes_once_per_epoch(mix):
    dataset = mix(3, 5)
    assert list(dataset) == [(0, i) for i in range(3)] + [(1, i) for i in range(5)]


def test_later_epochs_go_on_where_the_earlier_ones_stopped(mix):
    dataset = mix(10, 2, weights=[1, 1], length=8)
    draws = [dataset[i] for i in range(24)]
    assert [i for name, i in draws if name == 0] == list(range(12)), 'all ten, then over again'
    assert [i for name, i in draws if name == 1] == list(range(12)), 'redrawn draw indices'


@pytest.mark.parametrize(
    'options, counts',
    [
        (dict(repeats=[1, 4]), [10, 8]),
        (dict(repeats=[0.5, 0]), [5, 0]),
        (dict(weights=[1, 3]), [3, 9]),
        (dict(weights=[3, 1], length=100), [75, 25]),
    ],
)
def test_shares(mix, options, counts):
    dataset = mix(10, 2, **options)
    drawn = Counter(name for name, _ in dataset)
    assert [drawn[0], drawn[1]] == counts and len(dataset) == sum(counts)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), data=st.data())
def test_any_weights_fill_the_epoch_exactly(sizes, data):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    length = data.draw(st.integers(1, 200))
    dataset = MixtureDataset.__new__(MixtureDataset)
    dataset.datasets = [Items(i, size) for i, size in enumerate(sizes)]
    counts = dataset._epoch_counts(None, weights, length)
    assert sum(counts) == length
    assert all(abs(count - length * w / sum(weights)) <= 1 for count, w in zip(counts, weights))


@pytest.mark.parametrize(
    'options',
    [
        dict(repeats=[1, 1], weights=[1, 1]),
        dict(length=5),
        dict(weights=[1]),
        dict(weights=[0, 0]),
        dict(repeats=[1, -1]),
    ],
)
def test_unfit_shares_are_refused(mix, options):
    with pytest.raises(ValueError, match='MixtureDataset'):
        mix(4, 4, **options)


def test_counts_and_lengths_of_the_parts_are_joined(mix):
    dataset = mix(3, 2, repeats=[1, 2])
    assert dataset.skipped == {0: 1, 1: 1}
    assert dataset.modality_length == [300, 301, 302, 200, 201, 200, 201]
    with pytest.raises(IndexError):
        dataset[-1]


def test_real_readers_with_a_shared_pipeline(refcoco_cfg, mini_world):
    llava = dict(
        type='LLaVADataset',
        data_root=str(mini_world),
        ann_file='llava/llava_train.json',
        data_prefix=dict(img_path='images'),
    )
    dataset = DATASETS.build(
        dict(
            type='MixtureDataset',
            datasets=[refcoco_cfg, refcoco_cfg, llava],
            weights=[1, 1, 2],
            length=12,
            seed=4,
            pipeline=[lambda results: results['meta']['task']],
        )
    )
    assert list(dataset) == ['refseg'] * 6 + ['vqa'] * 6
    assert [part.seed for part in dataset.datasets] == [4, 5, 6]
    assert dataset.metainfo == dict(datasets=['RefCOCODataset'] * 2 + ['LLaVADataset'])


def test_missing_files_of_all_parts_are_named(refcoco_cfg):
    broken = [dict(refcoco_cfg, ann_file='gone.json'), dict(refcoco_cfg, split_file='gone.p')]
    with pytest.raises(MissingFilesError) as caught:
        DATASETS.build(dict(type='MixtureDataset', datasets=broken))
    assert [key for key, _ in caught.value.missing] == [
        'datasets[0].ann_file',
        'datasets[1].split_file',
    ]
    with pytest.raises(ValueError, match='datasets is empty'):
        DATASETS.build(dict(type='MixtureDataset', datasets=[]))


def stream(mixture, rank, world, draws, start=0, seed=0):
    """What a process of a training draws, as its sampler and the mixture decide."""
    sampler = DrawIndexSampler(
        mixture, dict(type='DefaultSampler', shuffle=True), batch_size=2, seed=seed
    )
    sampler.rank, sampler.world_size = rank, world
    sampler.start_at(start)
    return [mixture[index] for index in islice(sampler, draws)]


def test_draws_are_those_of_the_seed_and_go_on_where_they_stopped(mix):
    def draw(**options):
        return stream(mix(40, 10, 30, weights=[1, 2, 1]), 0, 1, 200, **options)

    whole = draw()
    assert draw() == whole and draw(seed=1) != whole
    assert draw(start=90)[:110] == whole[90:]


def test_processes_share_every_part_and_no_draw(mix):
    """Of 800 draws of four processes, each gets 200, and its quarter of every part."""
    drawn = [stream(mix(300, 100, 400, weights=[4, 3, 1]), rank, 4, 200) for rank in range(4)]
    assert len({item for part in drawn for item in part}) == 800
    assert Counter(name for part in drawn for name, _ in part) == {0: 400, 1: 300, 2: 100}
    for part in drawn:
        counts = Counter(name for name, _ in part)
        # Within three standard deviations of a drawing without replacement.
        assert all(
            abs(counts[name] - share) < 3 * (0.75 * share * (1 - share / 200)) ** 0.5
            for name, share in {0: 100, 1: 75, 2: 25}.items()
        )


def test_real_readers_draw_the_same_samples_after_a_resume(refcoco_cfg, mini_world):
    def build():
        return DATASETS.build(
            dict(
                type='MixtureDataset',
                weights=[1, 2],
                seed=4,
                pipeline=[
                    lambda results: (results['meta']['sample_id'], str(results['conversation']))
                ],
                datasets=[
                    refcoco_cfg,
                    dict(
                        type='OspreyDataset',
                        data_root=str(mini_world),
                        ann_file='osprey/osprey_train.json',
                        data_prefix=dict(img_path='images'),
                    ),
                ],
            )
        )

    whole = stream(build(), 0, 2, 30)
    assert stream(build(), 0, 2, 20, start=20) == whole[10:]
    other = stream(build(), 1, 2, 30)
    assert other != whole
