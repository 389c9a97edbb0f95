"""The converter of labelme's photos, on a drawn archive of the same layout (no network)."""

import json
import tarfile
from collections import defaultdict

import numpy as np
import pytest
from mmcv.transforms import Compose

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.converters import labelme_mini, make_labelme_mini
from pixelsail_mm.datasets.converters.labelme_mini import MEMBERS
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.errors import ArchiveError
from pixelsail_mm.registry import DATASETS, TRANSFORMS

PIPELINE = [dict(type='LoadImage'), dict(type='LoadMasks'), dict(type='LoadVisualPrompts')]


@pytest.fixture
def make(tmp_path, pack, files):
    """Convert the drawn archive, after changes to it."""

    def make(*members, out=tmp_path / 'mini', **options):
        path, digest = pack(files, *members)
        return make_labelme_mini(out, path, **dict(dict(sha256=digest), **options)), out

    return make


def read(folder, split, **options):
    dataset = DATASETS.build(
        dict(
            type='RefCOCODataset',
            data_root=str(folder),
            data_prefix=dict(img_path='images'),
            split=split,
            test_mode=True,
            **options,
        )
    )
    pipeline = Compose([TRANSFORMS.build(stage) for stage in PIPELINE])
    return [pipeline(record) for record in dataset]


def rectangle(*boxes):
    mask = np.zeros((40, 60), bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    return mask


def test_masks_and_sentences_through_the_reader(make):
    _, folder = make()
    masks = defaultdict(list)
    for split, photo in (('train', '03'), ('train', '25'), ('test', '06')):
        for record in read(folder, split):
            assert record['img'].shape == (40, 60, 3)
            if record['img_path'].endswith(f'{photo}.jpg'):
                masks[photo].append((record['meta']['expression'], record['gt_masks'][0]))
    found = {text: mask for texts in masks.values() for text, mask in texts}
    assert len(found) == 31, 'no sentence twice'
    for text, expected in {
        'the man in the dark knitted hat': rectangle((2, 2, 12, 30)),
        'the smiling man on the right': rectangle((30, 5, 50, 35), (27, 10, 30, 14)),
        "the bottle in the man's hand": rectangle((24, 8, 27, 20)),
        'the couch at the back': rectangle((0, 20, 8, 26), (33, 10, 48, 20)),
        'the bus cut off by the left edge': rectangle((0, 10, 9, 30)),
    }.items():
        np.testing.assert_array_equal(found[text], expected, err_msg=text)


def test_layout(make):
    info, folder = make()
    assert sorted(path.name for path in folder.iterdir()) == [
        '.gitignore',
        'images',
        'info.json',
        'instances.json',
        'refs(unc).p',
    ]
    assert (folder / '.gitignore').read_text() == '*\n', 'photos must never be committed'
    assert json.loads((folder / 'info.json').read_text()) == info
    assert info['images'] == dict(train=2, test=1) and info['instances'] == dict(train=6, test=6)
    assert 'do not redistribute' in info['licence']
    instances = json.loads((folder / 'instances.json').read_text())
    names = {entry['id']: entry['name'] for entry in instances['categories']}
    person = instances['annotations'][1]
    assert names[person['category_id']] == 'person'
    assert (person['bbox'], person['area']) == ([27, 5, 23, 30], 20 * 30 + 3 * 4)
    assert len(person['segmentation']) == 2


def test_splits_share_no_image_and_every_instance_is_singled_out(make):
    _, folder = make()
    refs = load_plain_pickle(folder / 'refs(unc).p')
    splits, sentences = defaultdict(set), defaultdict(list)
    for ref in refs:
        splits[ref['split']].add(ref['image_id'])
        assert 2 <= len(ref['sentences']) <= 3
        sentences[ref['image_id']] += [sentence['raw'] for sentence in ref['sentences']]
    assert not splits['train'] & splits['test']
    assert len(refs) == 12 == len({ref['ann_id'] for ref in refs})
    for texts in sentences.values():
        assert len(set(texts)) == len(texts)
        assert all(text == text.strip() and text.startswith('the ') for text in texts)
    pairs = {entry['raw']: entry['sent'] for ref in refs for entry in ref['sentences']}
    assert pairs['the bus with the number plate EBY 584'] == 'the bus with the number plate eby 584'


def test_training_samples_have_five_turns(make):
    _, folder = make()
    dataset = DATASETS.build(
        dict(type='RefCOCODataset', data_root=str(folder), data_prefix=dict(img_path='images'))
    )
    assert len(dataset) == 2
    assert all(len(record['masks']) == 5 for record in dataset)


def test_wrong_checksum_names_both_and_nothing_is_opened(make, tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile, 'open', lambda *args: pytest.fail('it was opened'))
    monkeypatch.setattr(labelme_mini, 'read_members', lambda *args: pytest.fail('it was opened'))
    (tmp_path / 'x.tar.gz').write_bytes(b'other')
    real = 'd9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa'
    with pytest.raises(ArchiveError, match=f'x.tar.gz: its sha256 is {real}, expected 2947e0d8'):
        make_labelme_mini(tmp_path / 'mini', tmp_path / 'x.tar.gz')
    assert [path.name for path in tmp_path.iterdir()] == ['x.tar.gz']


def test_links_are_not_followed(make, files):
    link = tarfile.TarInfo(f'{MEMBERS}/2011_000025.jpg')
    del files[link.name]
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    with pytest.raises(AnnotationError, match='2011_000025.json: imagePath: .*is not the photo'):
        make(link)


def _annotation(change):
    def apply(files):
        change(files[f'{MEMBERS}/2011_000025.json'])

    return apply


@pytest.mark.parametrize(
    'change, message',
    [
        (
            _annotation(lambda a: a.update(imagePath='../../2011_000025.jpg')),
            'imagePath: .*is not the',
        ),
        (
            _annotation(lambda a: a.update(imagePath='2011_000003.jpg')),
            'imagePath: .*is not the photo',
        ),
        (_annotation(lambda a: a.update(imageWidth=61)), r'imageHeight, imageWidth: \(40, 61\)'),
        (_annotation(lambda a: a.pop('shapes')), "photo: lacks .'shapes'"),
        (_annotation(lambda a: a['shapes'][0].pop('points')), r"shapes\[0\]: lacks .'points'"),
        (
            _annotation(lambda a: a['shapes'][0].update(shape_type='circle')),
            r"shapes\[0\].shape_type: 'circle'",
        ),
        (_annotation(lambda a: a['shapes'].pop(2)), r"instances are .'bus', 'bus'., but"),
        (lambda files: files.pop(f'{MEMBERS}/2011_000006.json'), '000006.json.*archive lacks it'),
        (
            lambda files: files.update({f'{MEMBERS}/2011_000006.json': b'{'}),
            '000006.json: json: no va',
        ),
        (lambda files: files.update({f'{MEMBERS}/2011_000006.jpg': b'no'}), 'cannot be decoded'),
    ],
)
def test_content_that_does_not_fit_is_named(make, files, tmp_path, change, message):
    change(files)
    with pytest.raises(AnnotationError, match=message):
        make()
    assert [path.name for path in tmp_path.iterdir()] == ['labelme-6.3.1.tar.gz'], 'nothing is left'


def test_an_outline_of_nothing_is_named(make, files):
    shape = files[f'{MEMBERS}/2011_000025.json']['shapes'][2]
    shape['points'] = [[100, 100], [110, 100], [110, 110]]
    with pytest.raises(BadSampleError, match='car: an outline that covers no pixel'):
        make()


def test_a_folder_is_only_replaced_when_asked(make, tmp_path):
    _, folder = make()
    (folder / 'mine.txt').touch()
    with pytest.raises(FileExistsError, match='--overwrite'):
        make()
    assert (folder / 'mine.txt').exists()
    make(overwrite=True)
    assert not (folder / 'mine.txt').exists() and (folder / 'info.json').exists()
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'precious').touch()
    with pytest.raises(FileExistsError, match='left untouched'):
        make(out=other, overwrite=True)
    assert [path.name for path in other.iterdir()] == ['precious']


def test_same_archive_same_bytes(make, tmp_path):
    _, first = make()
    _, second = make(out=tmp_path / 'again')
    for path in first.rglob('*'):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
