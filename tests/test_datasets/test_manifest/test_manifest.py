"""The manifest names readers and paths that exist, and the page is made from it."""

import subprocess
import sys

import pytest

from pixelsail_mm.datasets.manifest.entries import (
    dataset_cfg,
    evaluation_splits,
    load_manifest,
    where_to_get,
)
from pixelsail_mm.datasets.manifest.page import render_page
from pixelsail_mm.registry import DATASETS

DATA = load_manifest()
# Listings and repeats of the 0.5B co-training mix (reference, section "Config mixes").
MIX = dict(
    refcoco=4,
    refcoco_plus=4,
    refcocog=4,
    grefcoco=3,
    coco_semantic=1,
    coco_panoptic=1,
    openpsg_gcg=1,
    flickr_gcg=1,
    refcocog_gcg=1,
    grandf=10,
    muse=1,
    pix2cap_seg=2,
    pix2cap_region=10,
    osprey_description=10,
    osprey_conversation=1,
    osprey_part=1,
    osprey_lvis=1,
    osprey_short=1,
    coco_region_class=1,
    llava=1,
)


def test_the_mix_is_that_of_the_recipe():
    assert {
        name: entry['repeats'] for name, entry in DATA['datasets'].items() if 'repeats' in entry
    } == MIX


@pytest.mark.parametrize('name', DATA['datasets'])
def test_every_reader_takes_its_arguments(name):
    for split in (None, *evaluation_splits(name)):
        dataset = DATASETS.build(dataset_cfg(name, evaluation=split, lazy_init=True))
        assert dataset.test_mode is (split is not None) or name.startswith('perbench')


def test_the_split_is_put_where_the_reader_needs_it():
    assert dataset_cfg('refcocog', evaluation='test')['split'] == 'test'
    assert dataset_cfg('reason_seg', evaluation='val')['data_prefix'] == dict(img_path='val')
    cfg = dataset_cfg('grandf', evaluation='test', root='/data')
    assert cfg['data_root'] == '/data/glamm_data'
    assert cfg['captions_file'] == 'annotations/val_test/test_gcg_coco_caption_gt.json'
    assert 'test_mode' not in dataset_cfg('grandf')


def test_an_unknown_split_comes_with_the_choices():
    with pytest.raises(ValueError, match=r"'refcocog' has no.*'testA'.*\['val', 'test'\]"):
        dataset_cfg('refcocog', evaluation='testA')


@pytest.mark.parametrize('name', DATA['datasets'])
def test_entries_say_what_and_where_from(name):
    entry = DATA['datasets'][name]
    assert entry['title'] and entry['task'] and entry['source'].startswith('https://')
    assert set(entry.get('archives', ())) <= set(DATA['archives'])


def test_overrides_replace_and_the_manifest_stays_as_it_is():
    cfg = dataset_cfg('refcoco', split='testA', data_root='/elsewhere')
    assert cfg['split'] == 'testA' and cfg['data_root'] == '/elsewhere'
    cfg['data_prefix']['img_path'] = 'changed'
    assert dataset_cfg('refcoco')['data_prefix']['img_path'] != 'changed'


def test_an_unknown_name_comes_with_the_choices():
    with pytest.raises(KeyError, match="'refcocco'.*refcoco_plus"):
        dataset_cfg('refcocco')


def test_paths_tell_where_their_files_come_from():
    sentence = where_to_get('data/ref_seg/refcoco+/refs(unc).p')
    assert 'RefCOCO+' in sentence and 'refcoco+.zip' in sentence and 'train2014.zip' in sentence
    assert where_to_get('data/coco/train2014') is not None
    assert 'GranDf' in where_to_get(
        'data/glamm_data/annotations/val_test/val_gcg_coco_mask_gt.json'
    )
    assert where_to_get('/elsewhere/coco/train2014') == where_to_get('data/coco/train2014')
    assert where_to_get('somewhere/else.json') is None


@pytest.mark.integration
def test_the_page_is_current(repo_root):
    done = subprocess.run(
        [sys.executable, 'tools/misc/data_docs.py', '--check'],
        cwd=repo_root,
        env={'PYTHONPATH': str(repo_root), 'PATH': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_names_every_data_set():
    page = render_page()
    assert all(f'## {name}\n' in page for name in DATA['datasets'])
    assert all(archive['url'] in page for archive in DATA['archives'].values())
