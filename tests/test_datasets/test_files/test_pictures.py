"""Pictures of every mode become what people see, and it is said what was done to them."""

import json

import numpy as np
import pytest
from PIL import ExifTags, Image
from torch.utils.data import DataLoader

from pixelsail_mm.apis.inferencer import _pixels as record_pixels
from pixelsail_mm.datasets.files import pictures
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.files.pictures import (
    BY_BITS,
    BY_RANGE,
    NOT_FINITE,
    ON_WHITE,
    ROTATION_IGNORED,
    is_rotated,
    to_rgb,
)
from pixelsail_mm.datasets.transforms import LoadImage
from pixelsail_mm.errors import BadSampleError, ConfigError
from pixelsail_mm.models.experts import CachedExpert
from pixelsail_mm.models.experts.images import original_image
from pixelsail_mm.notices import warn_once
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.structures import PixelDataSample

RAMP = np.linspace(0, 1, 200).reshape(10, 20)


def stored(tmp_path, pixels, suffix='tif'):
    """The picture as Pillow opens it from a file."""
    Image.fromarray(pixels).save(tmp_path / f'a.{suffix}')
    image = Image.open(tmp_path / f'a.{suffix}')
    image.load()
    return image


def spread(grey):
    assert (grey == grey[..., :1]).all()
    return int(grey.min()), int(grey.max()), len(np.unique(grey))


@pytest.mark.parametrize(
    'dtype, highest, suffix, note',
    [
        (np.uint16, 65535, 'tif', BY_BITS.format(16)),
        (np.uint16, 65535, 'png', BY_BITS.format(16)),
        (np.uint16, 4095, 'tif', BY_BITS.format(12)),
        (np.uint16, 255, 'png', None),
        ('>u2', 65535, 'tif', BY_BITS.format(16)),
        (np.int32, 65535, 'tif', BY_BITS.format(16)),
        (np.int32, 4095, 'tif', BY_BITS.format(12)),
        (np.int32, 10**9, 'tif', BY_RANGE),
    ],
)
def test_deep_greys_are_scaled_and_not_cut(tmp_path, dtype, highest, suffix, note):
    """Pillow's convert('RGB') gives one white area of the first."""
    image = stored(tmp_path, np.round(RAMP * highest).astype(dtype), suffix)
    assert image.mode in ('I', 'I;16', 'I;16B')
    grey, notes = to_rgb(image)
    assert grey.dtype == np.uint8 and notes == ([note] if note else [])
    low, high, shades = spread(grey)
    assert (low, high) == (0, 255) and shades > 190
    assert np.abs(grey[..., 0] - RAMP * 255).max() <= 0.54  # rounded twice


def test_dark_pictures_stay_dark():
    grey, notes = to_rgb(Image.fromarray(np.full((4, 4), 6000, np.uint16)))
    assert spread(grey) == (23, 23, 1) and notes == [BY_BITS.format(16)]


def test_numbers_below_zero_are_scaled_by_their_range(tmp_path):
    grey, notes = to_rgb(stored(tmp_path, np.round(RAMP * 2000 - 1000).astype(np.int32)))
    assert spread(grey)[:2] == (0, 255) and notes == [BY_RANGE]


@pytest.mark.parametrize(
    'low, high, notes, seen',
    [
        (0, 1, [], (0, 255)),
        (0.2, 0.6, [], (51, 153)),
        (0, 80, [BY_RANGE], (0, 255)),
        (-3, 1, [BY_RANGE], (0, 255)),
        (7, 7, [BY_RANGE], (0, 0)),
        (0.5, 0.5, [], (128, 128)),
    ],
)
def test_floats(tmp_path, low, high, notes, seen):
    image = stored(tmp_path, (low + RAMP * (high - low)).astype(np.float32))
    assert image.mode == 'F'
    grey, said = to_rgb(image)
    assert said == notes and spread(grey)[:2] == seen


def test_pixels_that_are_not_finite(tmp_path):
    pixels = (RAMP * 80).astype(np.float32)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    grey, notes = to_rgb(stored(tmp_path, pixels))
    assert notes == [NOT_FINITE, BY_RANGE]
    assert grey[0, :3, 0].tolist() == [0, 255, 0] and spread(grey)[2] > 190
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / 'n.tif')
    with pytest.raises(ValueError, match='n.tif: img_path: cannot be decoded .no pixel is finite'):
        LoadImage()(dict(img_path=str(tmp_path / 'n.tif')))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'RGB', 'L'])
def test_hidden_colours_are_not_seen(tmp_path, mode):
    """Left half transparent over black, right half grey."""
    grey = np.zeros((4, 8), np.uint8)
    grey[:, 4:] = 120
    alpha = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8)[None].repeat(4, 0)
    picture = Image.fromarray(grey)
    if mode in ('RGBA', 'LA'):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / 'a.png')
    else:
        hidden = {'L': 0, 'RGB': (0, 0, 0)}.get(mode)
        picture = picture.convert(mode)
        picture.save(
            tmp_path / 'a.png',
            transparency=(picture.getpixel((0, 0)) if hidden is None else hidden),
        )
    image = Image.open(tmp_path / 'a.png')
    assert image.mode == mode
    rgb, notes = to_rgb(image)
    assert (rgb[:, :4] == 255).all() and (np.abs(rgb[:, 4:].astype(int) - 120) < 2).all()
    assert notes == [ON_WHITE]


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    picture = Image.fromarray(rgb)
    picture.putalpha(255)
    seen, notes = to_rgb(picture)
    assert np.array_equal(seen, rgb) and notes == []


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA', 'L', '1', 'CMYK', 'YCbCr', 'P', 'PA'])
@pytest.mark.parametrize('rows', [1, 3, 5, 100])
def test_pieces_of_a_picture_are_those_of_the_whole(monkeypatch, mode, rows):
    """Transparent or not, each with the note it has as a whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 7, 4), np.uint8)
    pixels[:4, :, 3] = 255
    picture = Image.fromarray(pixels)
    if mode == 'P':
        picture = picture.convert('RGB').quantize(5)
        picture.info['transparency'] = 2
    elif mode == 'PA':  # of Pillow's conversion nothing is transparent
        picture = picture.convert('LA').convert('PA')
    else:
        picture = picture.convert(mode)
    whole = to_rgb(picture)
    monkeypatch.setattr(pictures, '_ROWS', rows)
    pieces = to_rgb(picture)
    np.testing.assert_array_equal(pieces[0], whole[0])
    assert pieces[1] == whole[1] == ([ON_WHITE] if mode in ('RGBA', 'LA', 'P') else [])


def test_half_transparent_pixels_are_mixed_with_white():
    rgb, _ = to_rgb(Image.new('RGBA', (2, 2), (255, 0, 0, 128)))
    assert rgb[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize('mode', ['CMYK', 'YCbCr', 'L', '1', 'P'])
def test_other_modes_are_converted_as_before(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))
    image = image.convert(mode)
    rgb, notes = to_rgb(image)
    assert np.array_equal(rgb, np.array(image.convert('RGB'))) and notes == []


@pytest.fixture
def photo(tmp_path):
    """A phone's photo: stored lying (8 high, 12 wide), shown standing; red at the stored left."""
    pixels = np.full((8, 12, 3), 250, np.uint8)
    pixels[:, :4] = 200, 0, 0
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees to the right
    path = tmp_path / 'phone.png'
    Image.fromarray(pixels).save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize('orientation', [0, 1, 9, 255])
def test_other_orientations_turn_nothing(orientation):
    image = Image.new('RGB', (12, 8))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    assert not is_rotated(image) and to_rgb(image)[1] == []


def test_a_rotation_is_ignored_and_noted_or_followed(photo):
    notes = []
    kept = LoadImage()(dict(img_path=photo, notes=notes))
    assert kept['ori_shape'] == (8, 12) and notes == [ROTATION_IGNORED]
    assert 'exif_rotated' not in kept
    for turned in (
        LoadImage(exif='rotate')(dict(img_path=photo, notes=[])),
        LoadImage()(dict(img_path=photo, notes=[], exif='rotate')),
    ):
        assert turned['ori_shape'] == (12, 8) and turned['exif_rotated'] and not turned['notes']
        assert (turned['img'][:4, :, 1] == 0).all() and (turned['img'][4:, :, 1] == 250).all()
    with pytest.raises(ValueError, match="exif='turn': use 'ignore' or 'rotate'"):
        LoadImage(exif='turn')


def test_without_a_dataset_it_is_said_once(photo, said):
    warn_once.cache_clear()
    for _ in range(3):
        LoadImage()(dict(img_path=photo))
    assert said == [ROTATION_IGNORED]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_dataset_counts_them_in_all_workers(photo, tmp_path, said, workers):
    Image.fromarray(np.full((8, 12), 300, np.uint16)).save(tmp_path / 'deep.png')
    names = ['phone.png', 'deep.png', 'phone.png', 'deep.png']
    (tmp_path / 'c.json').write_text(
        json.dumps(
            [
                dict(
                    image=name,
                    conversations=[
                        {'from': 'human', 'value': 'What?'},
                        {'from': 'gpt', 'value': 'It.'},
                    ],
                )
                for name in names
            ]
        )
    )
    dataset = DATASETS.build(
        dict(
            type='LLaVADataset',
            ann_file='c.json',
            data_root=str(tmp_path),
            pipeline=[dict(type='LoadImage')],
        )
    )
    loader = DataLoader(dataset, num_workers=workers, collate_fn=list)
    assert len([sample for batch in loader for sample in batch]) == 4
    assert dataset.noted == {ROTATION_IGNORED: 2, BY_BITS.format(12): 2}
    if not workers:  # the workers' own log
        assert [line.split(': ')[1] for line in said] == ['item 0', 'item 1']


def test_a_picture_that_the_pipeline_accepted_is_read_again(photo, monkeypatch):
    """Whatever the default limit is: the config may have a higher one."""
    monkeypatch.setattr(LoadImage.__init__, '__defaults__', (10, 'ignore'))
    with pytest.raises(ValueError, match='exceeds max_pixels=10'):
        LoadImage()(dict(img_path=photo))
    record = dict(img_path=photo, notes=[])
    assert original_image(PixelDataSample(metainfo=record)).shape == (3, 8, 12)
    assert record_pixels(record).shape == (8, 12, 3)


def test_a_turned_sample_stays_turned_for_experts_and_pictures(photo, tmp_path):
    record = dict(img_path=photo, exif='rotate', notes=[])
    turned = LoadImage()(dict(record))
    sample = PixelDataSample(metainfo=dict(img_path=photo, exif_rotated=True, ori_shape=(12, 8)))
    assert np.array_equal(original_image(sample).permute(1, 2, 0), turned['img'])
    with pytest.raises(ConfigError, match="phone.png: turned.*remove exif='rotate'"):
        CachedExpert(str(tmp_path), image_root=str(tmp_path))([sample])


def test_programs_are_not_run(tmp_path):
    """A file of PostScript under any name would be run by Ghostscript, where it is installed."""
    path = tmp_path / 'a.jpg'
    Image.new('RGB', (4, 4)).save(path, 'EPS')
    with pytest.raises(BadSampleError, match='a.jpg: img_path: .*PostScript is a program'):
        LoadImage()(dict(img_path=str(path)))
    with pytest.raises(BadSampleError, match='a.jpg: m: .*PostScript is a program'):
        decode_mask(dict(png=str(path)), 4, 4, None, 'm')


PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


@pytest.mark.parametrize(
    'name, options, position, damage',
    [
        ('a.webp', dict(format='WEBP', lossless=True), 21, b'\xff' * 4),
        ('a.jp2', dict(format='JPEG2000'), 32, b'\x00' * 3 + b'\x01' + b'ihdr' + b'\x10' * 8),
        ('a.avif', dict(format='AVIF'), 271, b'\x00' * 12),
    ],
)
def test_damaged_headers_are_named(tmp_path, name, options, position, damage):
    """Their decoders raise errors of other kinds than those of PNG and JPEG."""
    path = tmp_path / name
    try:
        Image.fromarray(PHOTO).save(path, **options)
    except (OSError, KeyError) as error:
        pytest.skip(f'this Pillow cannot write it: {error}')
    content = bytearray(path.read_bytes())
    end = position + len(damage)
    content[position : end if end else None] = damage
    path.write_bytes(content)
    for read in (
        lambda: LoadImage()(dict(img_path=str(path))),
        lambda: decode_mask(dict(png=str(path)), *PHOTO.shape[:2], None, 'm'),
    ):
        with pytest.raises(BadSampleError, match=name):
            read()
