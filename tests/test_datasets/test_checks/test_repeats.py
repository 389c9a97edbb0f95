"""Samples of a test set that share an id: equal ones are said, different ones refused."""

import json
from copy import deepcopy

import numpy as np
import pytest

from pixelsail_mm.datasets.checks import check_config
from pixelsail_mm.datasets.checks.repeats import find_repeats
from pixelsail_mm.datasets.mixing.mixture import MixtureDataset
from pixelsail_mm.datasets.readers.grefcoco import GRefCOCODataset
from pixelsail_mm.engine.preflight import check_sample_ids
from pixelsail_mm.errors import ConfigError

SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


def reference(ref_id, ann_id, *sentences, image_id=1):
    return dict(
        ref_id=ref_id,
        ann_id=ann_id,
        image_id=image_id,
        split='val',
        sentences=[dict(raw=text, sent_id=number) for number, text in sentences],
    )


SOUND = [reference(1, [1], (1, 'red cup'), (2, 'the cup')), reference(2, [-1], (1, 'a horse'))]


@pytest.fixture
def cfg(tmp_path):
    """Config of a gRefCOCO test set with references."""

    def write(refs):
        images = [dict(id=i, file_name=f'{i}.jpg', height=8, width=10) for i in (1, 2)]
        annotations = [
            dict(id=i, image_id=1, segmentation=[[float(i)] + SQUARE[0][1:]]) for i in (1, 2)
        ]
        (tmp_path / 'instances.json').write_text(
            json.dumps(dict(images=images, annotations=annotations))
        )
        (tmp_path / 'grefs(unc).json').write_text(json.dumps(refs))
        (tmp_path / 'images').mkdir(exist_ok=True)  # never opened
        return dict(
            type='GRefCOCODataset',
            data_root=str(tmp_path),
            split='val',
            name='grefs',
            data_prefix=dict(img_path='images'),
            test_mode=True,
        )

    return write


def dataset_of(cfg):
    return GRefCOCODataset(**{key: value for key, value in cfg.items() if key != 'type'})


def test_ids_of_their_own_are_silent(cfg, said):
    dataset = dataset_of(cfg(SOUND))
    found = find_repeats(dataset)
    assert (found.equal, found.different, found.unusable) == ([], [], [])
    check_sample_ids(dataset, 'test_dataloader[0].dataset')
    assert said == []


def test_a_reference_listed_twice_is_said(cfg, said):
    dataset = dataset_of(cfg([*SOUND, deepcopy(SOUND[0])]))
    check_sample_ids(dataset, 'test_dataloader[0].dataset')
    (message,) = said
    assert 'test_dataloader[0].dataset' in message and 'grefs(unc).json' in message
    assert '2 samples are listed again; each counts once: grefs/1_1 (items 0 and' in message


@pytest.mark.parametrize(
    'other, words',
    [
        (reference(1, [1], (1, 'blue cup')), "'Please segment red cup .*'Please segment blue cup"),
        (reference(1, [2], (1, 'red cup')), 'other targets'),
        (reference(1, [-1], (1, 'red cup')), 'other targets'),
        (reference(1, [1], (1, 'red cup'), image_id=2), 'other targets'),
    ],
)
def test_another_sample_under_a_known_id_is_refused(cfg, other, words):
    with pytest.raises(
        ConfigError,
        match=r'val_dataloader\[1\].*grefs\(unc\).json.*: 1 samples '
        f'have the id of another sample: grefs/1_1 .*{words}.*ref_id and sent_id',
    ):
        check_sample_ids(dataset_of(cfg([*SOUND, other])), 'val_dataloader[1].dataset')


def test_mixtures_are_looked_through(cfg):
    part = cfg([*SOUND, reference(1, [1], (1, 'blue cup'))])
    dataset = MixtureDataset(datasets=[part], pipeline=[])
    with pytest.raises(ConfigError, match=r'dataset\.datasets\[0\].*1 samples have the id'):
        check_sample_ids(dataset, 'test_dataloader[0].dataset')


def test_data_sets_of_others_are_left_alone():
    check_sample_ids([1, 2, 3], 'test_dataloader[0].dataset')


def test_check_data_finds_them(cfg):
    part = cfg([*SOUND, deepcopy(SOUND[1]), reference(1, [1], (2, 'blue cup'))])
    report = check_config(dict(test_dataloader=dict(dataset=dict(part, pipeline=[]))), samples=0)
    levels = {fault.level: fault for fault in report.faults if fault.kind == 'ids'}
    assert levels['error'].times == levels['warning'].times == 1
    assert 'grefs/1_2' in levels['error'].message and 'grefs/2_1' in levels['warning'].message
    training = dict(part, test_mode=False, pipeline=[])
    report = check_config(dict(train_dataloader=dict(dataset=training)), samples=0)
    assert not [fault for fault in report.faults if fault.kind == 'ids']


def test_the_evaluation_is_refused_before_a_model_is_built(cfg, tmp_path):
    from pathlib import Path

    from pixelsail_mm.config import read_config
    from pixelsail_mm.engine.runner_factory import build_test_runner

    toy = Path(__file__).parents[2] / 'test_engine' / 'toy_config.py'
    config = read_config(str(toy))
    config.work_dir, config.experiment_name, config.launcher = str(tmp_path), 'repeats', 'none'
    config.test_dataloader = config.test_dataloader[:1]
    config.test_evaluator = config.test_evaluator[:1]
    config.test_dataloader[0].dataset = cfg([*SOUND, reference(1, [1], (1, 'blue cup'))])
    with pytest.raises(ConfigError, match='have the id of another sample'):
        build_test_runner(config, 'no_such_weights.safetensors').test()


def test_arrays_count_by_their_values(cfg):
    dataset = dataset_of(cfg(SOUND))
    masks = iter([np.ones((300, 300)), np.ones((300, 300)), np.eye(300)])
    dataset.record = lambda index, rng: dict(
        img_path='a.jpg',
        prompts=[],
        masks=[next(masks)],
        meta=dict(sample_id='x', dataset='d'),
        conversation=[dict(human='q', gpt='a')],
    )
    found = find_repeats(dataset)
    assert (len(found.equal), len(found.different)) == (1, 1)
