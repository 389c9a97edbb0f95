"""Photos of COCO under the names of its releases, in folders of which some may be missing."""

import json
import os

import pytest
from mmengine.config import Config
from PIL import Image

from pixelsail_mm.datasets.checks import check_config
from pixelsail_mm.datasets.files.image_folders import find_photo
from pixelsail_mm.engine.preflight import check_files
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS

SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]
YEARS = ('train2014', 'val2014', 'train2017', 'val2017')
# Of a person who has the images of 2017 only; the files name those of 2014.
PHOTOS = {
    9: ('COCO_train2014_{}.jpg', 'train2017'),
    25: ('COCO_val2014_{}.jpg', 'val2017'),
    30: ('{}.jpg', 'train2017'),
}


def number(photo):
    return f'{photo:012d}'


@pytest.fixture
def root(tmp_path):
    for folder in ('train2017', 'val2017'):
        (tmp_path / folder).mkdir()
    for photo, (_, folder) in PHOTOS.items():
        Image.new('RGB', (10, 8), (photo, 0, 0)).save(tmp_path / folder / f'{number(photo)}.jpg')
    return tmp_path


def osprey_entry(name):
    return dict(
        file_name=name,
        height=8,
        width=10,
        annotation=[dict(segmentation=SQUARE)],
        description=['<region1>: a dog'],
        conversations=[
            {'from': 'human', 'value': 'What is <region1>?'},
            {'from': 'gpt', 'value': 'A dog.'},
        ],
    )


def muse_entry(name):
    return dict(
        file_name=name,
        height=8,
        width=10,
        ann_list=[1],
        questions=['Where?'],
        answers=[[dict(segmentation=SQUARE, category_name='dog')]],
    )


KINDS = {
    'OspreyDataset': osprey_entry,
    'OspreyDescriptionDataset': osprey_entry,
    'MUSEDataset': muse_entry,
}


@pytest.fixture(params=KINDS)
def reader(request, root):
    """Config of a reader of all photos, with the folders of the manifest."""
    names = [name.format(number(photo)) for photo, (name, _) in PHOTOS.items()]
    (root / 'a.json').write_text(json.dumps([KINDS[request.param](name) for name in names]))
    return dict(
        type=request.param,
        data_root=str(root),
        ann_file='a.json',
        data_prefix={year: year for year in YEARS},
        pipeline=[dict(type='LoadImage')],
    )


def test_photos_of_2014_are_found_in_the_folders_of_2017(reader, root, said):
    dataset = DATASETS.build(reader)
    for i, (photo, (_, folder)) in enumerate(PHOTOS.items()):
        assert dataset.image_path(i) == str(root / folder / f'{number(photo)}.jpg')
        assert dataset[i]['img_path'] == dataset.image_path(i)
        assert abs(int(dataset[i]['img'][0, 0, 0]) - photo) <= 2
    assert [line.split(': ')[0] for line in said] == [reader['type']] * 2
    for year, line in zip(YEARS, said):
        assert f'data_prefix.{year}: {root}/{year}' in line and 'all images are in others' in line


def test_an_image_that_is_nowhere_makes_the_missing_folders_an_error(reader, root):
    (root / 'val2017' / f'{number(25)}.jpg').unlink()
    with pytest.raises(MissingFilesError) as caught:
        DATASETS.build(reader)
    text = str(caught.value)
    assert '1 of 3 images, such as' in text and number(25) in text
    assert f'{root}/train2014' in text and f'{root}/val2014' in text and 'val2017 ' not in text
    # With every folder that is named there, a missing image is one skipped sample.
    folders = dict(train2017='train2017', val2017='val2017')
    assert len(DATASETS.build(dict(reader, data_prefix=folders))) == 3


def test_without_any_folder_all_are_missing(reader, root):
    for folder in ('train2017', 'val2017'):
        (root / folder).rename(root / f'elsewhere_{folder}')
    with pytest.raises(MissingFilesError) as caught:
        DATASETS.build(reader)
    assert [key for key, _ in caught.value.missing] == [f'data_prefix.{year}' for year in YEARS]


def test_the_report_before_training_names_what_is_needed_only(reader, root):
    cfg = Config(dict(train_dataloader=dict(dataset=reader)))
    check_files(cfg, ('train_dataloader',))
    for folder in ('train2017', 'val2017'):
        (root / folder).rename(root / f'elsewhere_{folder}')
    with pytest.raises(MissingFilesError, match='4 files or folders'):
        check_files(cfg, ('train_dataloader',))


def test_other_readers_need_all_their_folders(root):
    cfg = dict(
        type='COCOPanopticDataset',
        data_root=str(root),
        ann_file='p.json',
        data_prefix=dict(img_path='train2017', seg_map_path='gone'),
    )
    (root / 'p.json').write_text('{}')
    with pytest.raises(MissingFilesError, match='data_prefix.seg_map_path'):
        DATASETS.build(cfg)
    with pytest.raises(MissingFilesError, match='1 files or folders'):
        check_files(Config(dict(train_dataloader=dict(dataset=cfg))), ('train_dataloader',))


def test_check_data_warns_of_a_missing_folder(reader):
    report = check_config(dict(train_dataloader=dict(dataset=reader)))
    assert {(fault.level, fault.kind) for fault in report.faults} == {('warning', 'read otherwise')}
    assert 'data_prefix.train2014' in report.faults[0].message


def test_a_reader_of_one_folder_finds_the_other_name(root):
    """Who has train2017 only may name it in place of train2014, and the other way round."""
    entry = {
        '9': dict(
            img_file_name=f'COCO_train2014_{number(9)}.jpg',
            caption='a dog',
            refs=[dict(sentence='dog', segmentation=SQUARE)],
        )
    }
    (root / 'g.json').write_text(json.dumps([entry]))
    dataset = DATASETS.build(
        dict(
            type='RefCOCOgGCGDataset',
            data_root=str(root),
            ann_file='g.json',
            data_prefix=dict(img_path='train2017'),
        )
    )
    assert dataset[0]['img_path'] == str(root / 'train2017' / f'{number(9)}.jpg')


def test_names(tmp_path):
    for name in ('a.jpg', 'x/COCO_train2014_000000000009.jpg', '000000000011.jpg'):
        path = tmp_path / 'second' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folders = [str(tmp_path / 'first'), str(tmp_path / 'second')]
    for name, found in (
        ('a.jpg', 'second/a.jpg'),
        ('b.jpg', 'first/b.jpg'),
        ('x/000000000009.jpg', 'second/x/COCO_train2014_000000000009.jpg'),
        ('COCO_val2014_000000000011.jpg', 'second/000000000011.jpg'),
        ('000000000010.jpg', 'first/000000000010.jpg'),
    ):
        assert find_photo(name, folders) == os.path.join(tmp_path, found)
