"""Lengths for grouping are those of the samples themselves."""

import json

import pytest
from PIL import ExifTags, Image

from pixelsail_mm.registry import DATASETS

BROKEN = 3


@pytest.fixture
def tokens(mini_world):
    """Pipeline from records to tokens."""
    return [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='LoadVisualPrompts'),
        dict(type='ResizeToGrid', patch_size=8),
        dict(type='BuildConversation', tokenizer=str(mini_world / 'tokenizer')),
    ]


@pytest.fixture
def configs(refcoco_cfg, mini_world):
    """A reader of each kind."""
    root = dict(data_root=str(mini_world), data_prefix=dict(img_path='images'))
    return dict(
        refcoco=refcoco_cfg,
        llava=dict(root, type='LLaVADataset', ann_file='llava/llava_train.json'),
        osprey=dict(root, type='OspreyDataset', ann_file='osprey/osprey_train.json'),
    )


@pytest.mark.parametrize('name', ['refcoco', 'llava', 'osprey'])
def test_lengths_are_those_of_the_first_draws(configs, tokens, name):
    dataset = DATASETS.build(dict(configs[name], pipeline=tokens))
    samples = list(dataset)
    assert dataset.modality_length == [
        len(s['input_ids']) * (-1 if s['img'] is None else 1) for s in samples
    ]
    if name == 'llava':
        assert min(dataset.modality_length) < 0 < max(dataset.modality_length)


def test_lengths_of_merged_and_mixed_datasets(configs, tokens):
    parts = [configs['refcoco'], configs['osprey']]
    merged = DATASETS.build(dict(type='MergedDataset', datasets=parts, pipeline=tokens))
    assert merged.modality_length == [len(s['input_ids']) for s in merged]
    mixed = DATASETS.build(dict(type='MixtureDataset', datasets=parts, pipeline=tokens))
    assert mixed.modality_length == [len(s['input_ids']) for s in mixed]


def test_lengths_are_cut_with_the_turns(configs, tokens):
    tokens[-1]['max_length'] = 140
    dataset = DATASETS.build(dict(configs['refcoco'], pipeline=tokens, num_turns=9))
    assert dataset.modality_length == [len(s['input_ids']) for s in dataset]
    assert max(dataset.modality_length) <= 140


def test_sizes_that_the_annotation_lacks_come_from_the_image(
    write_refcoco, tokens, mini_world, tmp_path
):
    cfg = write_refcoco(
        [dict(id=1, file_name='000000.png')],
        [dict(id=1, segmentation=[[1, 1, 9, 1, 9, 9]])],
        [dict(ref_id=1, ann_id=1, image_id=1, split='train', sentences=[dict(raw='a star')])],
    )
    image = (mini_world / 'images' / 'train' / '000000.png').read_bytes()
    (tmp_path / 'images' / '000000.png').write_bytes(image)
    dataset = DATASETS.build(dict(cfg, pipeline=tokens))
    assert dataset.modality_length == [len(dataset[0]['input_ids'])]


@pytest.mark.parametrize('exif', ['ignore', 'rotate'])
def test_a_turned_picture_has_the_length_of_what_is_shown(write_refcoco, tokens, tmp_path, exif):
    """With a token at the end of each row of patches, the longer side counts."""
    cfg = write_refcoco(
        [dict(id=1, file_name='phone.png')],
        [dict(id=1, segmentation=[[1, 1, 9, 1, 9, 9]])],
        [dict(ref_id=1, ann_id=1, image_id=1, split='train', sentences=[dict(raw='a star')])],
    )
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    Image.new('RGB', (80, 24)).save(tmp_path / 'images' / 'phone.png', exif=orientation)
    tokens[0]['exif'] = exif
    tokens[-1]['image_layout'] = 'rows'
    dataset = DATASETS.build(dict(cfg, pipeline=tokens))
    sample = dataset[0]
    assert sample['grid'] == ((10, 3) if exif == 'rotate' else (3, 10))
    assert dataset.modality_length == [len(sample['input_ids'])]


def test_a_broken_sample_has_length_one(configs, tokens, tmp_path, mini_world):
    entries = json.loads((mini_world / 'llava/llava_train.json').read_text())
    entries[BROKEN].update(image='gone.png', height=None, width=None)
    (tmp_path / 'broken.json').write_text(json.dumps(entries))
    cfg = dict(configs['llava'], ann_file=str(tmp_path / 'broken.json'), pipeline=tokens)
    lengths = DATASETS.build(cfg).modality_length
    assert lengths[BROKEN] == 1 and lengths.count(1) == 1


def test_lengths_are_kept_with_the_index(configs, tokens, tmp_path, monkeypatch):
    cfg = dict(configs['refcoco'], pipeline=tokens, index_cache=str(tmp_path / 'cache'))
    expected = DATASETS.build(cfg).modality_length
    with monkeypatch.context() as patch:
        patch.setattr('pixelsail_mm.datasets.base.measure_lengths', None)  # would raise if called
        assert DATASETS.build(cfg).modality_length == expected
    tokens[-1]['template'] = 'qwen_chat'
    assert DATASETS.build(dict(cfg, pipeline=tokens)).modality_length != expected


@pytest.mark.parametrize('missing', ['ResizeToGrid', 'BuildConversation'])
def test_a_pipeline_without_tokens_is_named(configs, tokens, missing):
    pipeline = [t for t in tokens if t['type'] != missing]
    dataset = DATASETS.build(dict(configs['refcoco'], pipeline=pipeline))
    with pytest.raises(ValueError, match=f'RefCOCODataset: token lengths need {missing}'):
        _ = dataset.modality_length
