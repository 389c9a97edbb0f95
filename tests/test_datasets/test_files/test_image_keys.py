"""One photo under several names."""

import pytest

from pixelsail_mm.datasets import AnnotationError
from pixelsail_mm.datasets.files.image_keys import (
    coco_names,
    image_key,
    read_image_keys,
    write_image_keys,
)
from pixelsail_mm.registry import DATASETS


@pytest.mark.parametrize(
    'path',
    [
        'coco/train2014/COCO_train2014_000000000009.jpg',
        '/data/val2017/000000000009.jpg',
        '000000000009.png',
    ],
)
def test_names_of_coco_are_one_photo(path):
    assert image_key(path) == 'coco:9'


def test_names_of_a_photo_in_all_releases():
    assert coco_names('a/COCO_train2014_000000000009.jpg') == [
        'a/COCO_train2014_000000000009.jpg',
        'a/000000000009.jpg',
        'a/COCO_val2014_000000000009.jpg',
    ]
    assert coco_names('12.jpg') == ['12.jpg']


def test_other_names_are_told_apart_by_their_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert image_key('train/000001.png') == str(tmp_path / 'train/000001.png')
    assert image_key('train/000001.png') != image_key('test/000001.png')
    assert image_key('./train/../train/000001.png') == image_key('train/000001.png')


def test_lists_come_back_and_may_hold_names_and_comments(tmp_path):
    write_image_keys({'coco:9', '/a/b.png', 'coco:10'}, tmp_path / 'list.txt')
    assert read_image_keys(tmp_path / 'list.txt') == {'coco:9', 'coco:10', '/a/b.png'}
    (tmp_path / 'own.txt').write_text('# mine\n\nCOCO_val2014_000000000007.jpg\n')
    assert read_image_keys(tmp_path / 'own.txt') == {'coco:7'}


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r'gone\.txt: exclude_images: cannot be read'):
        read_image_keys(tmp_path / 'gone.txt')


def test_excluded_images_are_left_out_and_counted(refcoco_cfg, tmp_path):
    every = DATASETS.build(refcoco_cfg)
    unwanted = {image_key(every.image_path(i)) for i in (0, 5)}
    write_image_keys(unwanted, tmp_path / 'list.txt')
    dataset = DATASETS.build(dict(refcoco_cfg, exclude_images=str(tmp_path / 'list.txt')))
    assert len(dataset) == len(every) - 2
    assert dataset.skipped == {'image excluded': 2}
    assert not unwanted & {image_key(dataset.image_path(i)) for i in range(len(dataset))}
