"""What is built beforehand is what a training looks for."""

from functools import partial

import pytest

from pixelsail_mm.datasets.manifest.entries import dataset_cfg
from pixelsail_mm.datasets.manifest.prepare import prepare_config
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import DATASETS


@pytest.fixture
def config(public_layout, tmp_path):
    """A mixture of three readers, grouped by length, and an evaluation without a cache."""
    data = str(public_layout[1])
    pipeline = [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='ResizeToGrid', patch_size=8),
        dict(type='BuildConversation', tokenizer=f'{data}/tokenizer', max_length=1024),
    ]
    parts = [
        dataset_cfg(name, root=data, index_cache=str(tmp_path / 'index'))
        for name in ('refcoco', 'muse', 'llava')
    ]
    return dict(
        train_dataloader=dict(
            sampler=dict(type='LengthGroupedSampler'),
            dataset=dict(type='MixtureDataset', datasets=parts, pipeline=pipeline, seed=3),
        ),
        val_dataloader=[dict(dataset=dataset_cfg('refcoco', root=data, evaluation='val'))],
    )


def build_without_annotations(config, monkeypatch):
    """The mixture as a training builds it, which must not parse anything."""

    def refuse(*args, **kwargs):
        raise AssertionError('the index was built again')

    monkeypatch.setattr('pixelsail_mm.datasets.files.index_cache.write_items', refuse)
    for module in ('base', 'sample_source'):
        monkeypatch.setattr(f'pixelsail_mm.datasets.{module}.measure_lengths', refuse)
    return DATASETS.build(config['train_dataloader']['dataset'])


def test_a_training_finds_everything(config, monkeypatch):
    done = prepare_config(config, workers=2)
    assert [part.key for part in done] == [
        f'train_dataloader.dataset.datasets[{i}]' for i in range(3)
    ]
    dataset = build_without_annotations(config, monkeypatch)
    assert [part.items for part in done] == [len(part) for part in dataset.datasets]
    lengths = dataset.modality_length
    assert len(lengths) == len(dataset) and min(map(abs, lengths)) > 1
    sample = dataset[0]
    assert len(sample['input_ids']) == lengths[0]


def test_lengths_are_measured_only_for_samplers_that_need_them(config, monkeypatch):
    config['train_dataloader']['sampler'] = dict(type='DefaultSampler', shuffle=True)
    prepare_config(config)
    dataset = build_without_annotations(config, monkeypatch)
    with pytest.raises(AssertionError, match='built again'):
        dataset.modality_length  # noqa: B018


def test_a_config_without_a_folder_is_refused(config):
    for part in config['train_dataloader']['dataset']['datasets']:
        del part['index_cache']
    with pytest.raises(ConfigError, match='index_cache'):
        prepare_config(config)


@pytest.mark.integration
def test_the_command(config, public_layout, tmp_path, run_command, warm_python):
    path = tmp_path / 'config.py'
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in config.items()))

    run = partial(run_command, warm_python, 'tools/misc/build_index.py', path)
    done = run('--workers', '2')
    assert done.returncode == 0, done.stderr
    assert 'train_dataloader.dataset.datasets[1]: 16 items' in done.stdout
    (public_layout[1] / 'muse/broken.json').write_text('[')
    done = run('--cfg-options', 'train_dataloader.dataset.datasets.1.ann_file=broken.json')
    assert done.returncode == 2 and 'broken.json' in done.stderr
    assert 'Traceback' not in done.stderr
