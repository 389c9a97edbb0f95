"""The dataset base: deterministic draws, skipping, counting, checks."""

import copy
import gc
import json
import os

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pixelsail_mm.datasets import AnnotationError, BadSampleError, PixelDataset
from pixelsail_mm.datasets.base import select_turns
from pixelsail_mm.datasets.files.skip_counter import SkipCounter
from pixelsail_mm.errors import MissingFilesError


class NumberDataset(PixelDataset):
    """Items are numbers; those in ``broken`` raise."""

    def __init__(self, ann_file, broken=(), **kwargs):
        self.broken = set(broken)
        super().__init__(ann_file=str(ann_file), **kwargs)

    def load_data_list(self):
        with open(self.ann_file) as file:
            return [dict(number=n, img_path=f'{n}.png') for n in json.load(file)]

    def record(self, index, rng, num_turns=None):
        number = self.get_data_info(index)['number']
        if number in self.broken:
            raise BadSampleError(f'{number}.png', 'img_path', f'image {number} is truncated')
        return dict(number=number, draw=int(rng.integers(2**40)))


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / 'numbers.json'
    path.write_text(json.dumps(list(range(10))))
    return path


def read(sample):
    return sample['number'], sample['draw']


def identity(batch):
    return batch


def test_a_sample_is_a_function_of_seed_and_index(numbers):
    first, second = NumberDataset(numbers, seed=1), NumberDataset(numbers, seed=1)
    order = [3, 17, 3, 0, 109]
    expected = {i: read(first[i]) for i in order}
    assert {i: read(second[i]) for i in reversed(order)} == expected
    assert read(NumberDataset(numbers, seed=2)[3]) != expected[3]


def test_draw_indices_beyond_the_length_redraw_the_same_items(numbers):
    dataset = NumberDataset(numbers)
    assert [dataset[i]['number'] for i in (4, 14, 24)] == [4, 4, 4]
    assert len({dataset[i]['draw'] for i in (4, 14, 24)}) == 3
    assert read(dataset[np.int64(14)]) == read(dataset[14])


def test_iteration_ends_and_negative_indices_are_refused(numbers):
    dataset = NumberDataset(numbers)
    assert [sample['number'] for sample in dataset] == list(range(10))
    with pytest.raises(IndexError, match='-1'):
        dataset[-1]


def test_transforms_get_the_generator(numbers):
    dataset = NumberDataset(numbers, pipeline=[lambda results: results['rng'].integers(2**40)])
    assert dataset[3] == dataset[3] != dataset[13]


def test_broken_samples_are_replaced_deterministically_and_counted(numbers):
    dataset = NumberDataset(numbers, broken=[2, 5])
    replaced = read(dataset[2])
    assert replaced == read(NumberDataset(numbers, broken=[2, 5])[2])
    assert replaced[0] not in (2, 5)
    assert dataset.skipped == {'img_path: image # is truncated': 1}
    dataset[12]
    assert dataset.skipped == {'img_path: image # is truncated': 2}


def test_broken_samples_raise_in_test_mode(numbers):
    dataset = NumberDataset(numbers, broken=[2], test_mode=True)
    with pytest.raises(BadSampleError, match='2.png'):
        dataset[2]
    assert dataset[3]['number'] == 3


def test_a_wholly_broken_dataset_gives_up(numbers):
    dataset = NumberDataset(numbers, broken=range(10), max_refetch=4)
    with pytest.raises(RuntimeError, match='5 samples in a row.*data_root'):
        dataset[0]
    assert sum(dataset.skipped.values()) == 5


def test_workers_change_neither_samples_nor_counts(numbers):
    plain, worked = (NumberDataset(numbers, broken=[2]) for _ in range(2))
    expected = [read(sample) for sample in plain]
    loader = DataLoader(worked, batch_size=1, num_workers=2, collate_fn=identity)
    assert [read(batch[0]) for batch in loader] == expected
    assert worked.skipped == plain.skipped


def test_indices_keep_a_subset(numbers):
    assert [s['number'] for s in NumberDataset(numbers, indices=3)] == [0, 1, 2]
    assert [s['number'] for s in NumberDataset(numbers, indices=[7, 1])] == [7, 1]


def test_missing_files_are_reported_when_the_dataset_is_built(tmp_path):
    with pytest.raises(MissingFilesError) as caught:
        NumberDataset('gone.json', data_root=str(tmp_path), data_prefix=dict(img_path='pictures'))
    assert {key for key, _ in caught.value.missing} == {'ann_file', 'data_prefix.img_path'}


def test_an_empty_dataset_is_refused(tmp_path):
    (tmp_path / 'none.json').write_text('[]')
    with pytest.raises(AnnotationError, match='none.json.*has no item'):
        NumberDataset(tmp_path / 'none.json')


def test_lazy_init_checks_at_first_use(tmp_path):
    dataset = NumberDataset(tmp_path / 'gone.json', lazy_init=True)
    with pytest.raises(MissingFilesError):
        len(dataset)


def test_name_and_metainfo(numbers):
    assert NumberDataset(numbers).metainfo == dict(dataset='NumberDataset')
    assert NumberDataset(numbers, name='dev').metainfo == dict(dataset='dev')


def test_unimplemented_record_is_named(numbers):
    class Half(NumberDataset):
        record = PixelDataset.record

    with pytest.raises(NotImplementedError, match='Half'):
        Half(numbers)[0]


def test_select_turns():
    rng = np.random.default_rng(0)
    turns = list('abcdef')
    assert select_turns(turns, 2, False, rng) == ['a', 'b']
    assert select_turns(turns, None, False, rng) == turns
    drawn = {tuple(select_turns(turns, 2, True, rng)) for _ in range(40)}
    assert len(drawn) > 10 and all(len(set(pair)) == 2 for pair in drawn)


def test_skip_counter_masks_numbers_and_removes_its_file():
    counter = SkipCounter()
    counter.add('masks[3]: size 12x7')
    counter.add('masks[14]:  size\n4x4', times=2)
    assert counter.counts() == {'masks[#]: size #x#': 3}
    path = counter._path
    assert os.path.exists(path)
    del counter
    gc.collect()
    assert not os.path.exists(path)


def test_skip_counter_copies_share_one_count():
    counter = SkipCounter()
    twin = copy.deepcopy(counter)
    twin.add('in a worker')
    del twin
    gc.collect()
    assert counter.counts() == {'in a worker': 1}
