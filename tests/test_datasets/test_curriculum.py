"""One dataset before another: which draws come from where, and real readers in both places."""

from itertools import islice

import pytest

from pixelsail_mm.datasets import CurriculumDataset
from pixelsail_mm.datasets.annotation_files import MissingFilesError
from pixelsail_mm.datasets.samplers import DrawIndexSampler
from pixelsail_mm.registry import DATASETS


@pytest.fixture
def parts(mini_world):
    common = dict(data_root=str(mini_world), data_prefix=dict(img_path='images'))
    return dict(first=dict(type='LLaVADataset', ann_file='llava/options_train.json', **common),
                then=dict(type='LLaVADataset', ann_file='llava/llava_val.json', **common))


def test_draws_come_from_the_first_part_and_then_from_the_other(parts):
    dataset = DATASETS.build(dict(type='CurriculumDataset', lead_in=30, **parts))
    assert len(dataset) == len(dataset.then) == len(dataset.modality_length)
    draws = list(islice(DrawIndexSampler(dataset, seed=0), 30 + 2 * len(dataset)))
    samples = [dataset[draw] for draw in draws]
    assert all(sample['img_path'] is None for sample in samples[:30])
    assert all(sample['img_path'] for sample in samples[30:])
    paths = [sample['img_path'] for sample in samples[30:]]
    assert sorted(paths[:len(dataset)]) == sorted(paths[len(dataset):])
    # The first part has 25 items: it starts over.
    assert len(dataset.first) < 30
    assert samples[0]['meta']['sample_id'] == samples[len(dataset.first)]['meta']['sample_id']


def test_no_lead_in_is_the_second_part_alone(parts):
    dataset = CurriculumDataset(lead_in=0, **parts)
    assert dataset[0]['img_path'] and not dataset.skipped


def test_missing_files_of_both_parts_are_named(parts):
    parts['first']['ann_file'] = parts['then']['ann_file'] = 'nowhere.json'
    with pytest.raises(MissingFilesError, match=r'datasets\[0\](.|\n)*datasets\[1\]'):
        CurriculumDataset(lead_in=1, **parts)


def test_negative_numbers_are_refused(parts):
    with pytest.raises(ValueError, match='lead_in=-1'):
        CurriculumDataset(lead_in=-1, **parts)
    with pytest.raises(IndexError, match='-1'):
        CurriculumDataset(lead_in=1, **parts)[-1]
