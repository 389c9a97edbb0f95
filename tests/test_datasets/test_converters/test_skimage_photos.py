"""Photos of scikit-image with captions, as ImageCaptionDataset reads them."""

import pytest

from pixelsail_mm.datasets import ImageCaptionDataset
from pixelsail_mm.datasets.converters.skimage_photos import make_skimage_photos


def test_reader_finds_photos_and_captions(tmp_path):
    assert make_skimage_photos(tmp_path / 'photos') == dict(train=16, test=1)
    sizes = {}
    for split in ('train', 'test'):
        data = ImageCaptionDataset(
            f'{split}.json',
            data_root=str(tmp_path / 'photos'),
            data_prefix=dict(img_path='images'),
            test_mode=True,
            pipeline=[dict(type='LoadImage')],
        )
        for sample in data:
            sizes[sample['meta']['image_id']] = sample['img'].shape
            assert sample['conversation'][0]['gpt'].endswith('.')
    assert len(sizes) == 17 and sizes['chelsea'] == (300, 451, 3)
    assert sizes['camera'] == (512, 512, 3)  # grey ones become RGB


def test_crops_are_of_training_photos_and_the_same_each_time(tmp_path):
    for folder in ('a', 'b'):
        assert make_skimage_photos(tmp_path / folder, crops=2) == dict(train=48, test=1)
    names = [path.name for path in (tmp_path / 'a/images').glob('*_part*')]
    assert len(names) == 32 and not any('chelsea' in name for name in names)
    for name in ('coins_part0.png', 'retina_part1.png'):
        assert (tmp_path / 'a/images' / name).read_bytes() == (
            tmp_path / 'b/images' / name
        ).read_bytes()


def test_mistakes(tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/mine.txt').touch()
    with pytest.raises(FileExistsError, match='not empty'):
        make_skimage_photos(tmp_path / 'full')
    with pytest.raises(FileNotFoundError, match='astronaut.png'):
        make_skimage_photos(tmp_path / 'out', source=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['full']
