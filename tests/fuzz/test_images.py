"""Pictures and masks that are files, with damaged bytes."""

import io
import random

import numpy as np
import pytest
from hypothesis import note
from PIL import Image

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.transforms import LoadImage
from tests.fuzz.cases import Unsaid, fuzz, outcome
from tests.fuzz.defects import damage_bytes

H, W = 20, 30
_PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 4), np.uint8)
_RGBA = Image.fromarray(_PIXELS)
_RGB = _RGBA.convert('RGB')
_GREY = _RGB.convert('L')
_DEEP = Image.fromarray(_PIXELS[..., 0].astype(np.uint16) * 257)
_FLOAT = Image.fromarray(_PIXELS[..., 0].astype(np.float32) / 255)
_TURNED = Image.Exif()
_TURNED[0x0112] = 6


def _palette(index):
    image = _RGB.convert('P', palette=Image.Palette.ADAPTIVE)
    image.info['transparency'] = index
    return image


PICTURES = {
    'png': (_RGB, dict(format='PNG')),
    'png-rgba': (_RGBA, dict(format='PNG', exif=_TURNED)),
    'png-palette': (_palette(3), dict(format='PNG')),
    'png-grey-alpha': (_RGBA.convert('LA'), dict(format='PNG')),
    'png-16-bits': (_DEEP, dict(format='PNG')),
    'png-1-bit': (_GREY.convert('1'), dict(format='PNG')),
    'png-moving': (_RGB, dict(format='PNG', save_all=True, append_images=[_RGB.rotate(90)])),
    'jpeg': (_RGB, dict(format='JPEG', exif=_TURNED, icc_profile=b'no profile')),
    'jpeg-progressive': (_RGB, dict(format='JPEG', progressive=True)),
    'jpeg-grey': (_GREY, dict(format='JPEG')),
    'jpeg-cmyk': (_RGB.convert('CMYK'), dict(format='JPEG')),
    'jpeg-several': (_RGB, dict(format='MPO', save_all=True, append_images=[_RGB])),
    'webp': (_RGB, dict(format='WEBP', exif=_TURNED)),
    'webp-exact': (_RGBA, dict(format='WEBP', lossless=True)),
    'webp-moving': (_RGB, dict(format='WEBP', save_all=True, append_images=[_GREY])),
    'tiff': (_RGB, dict(format='TIFF')),
    'tiff-lzw': (_RGBA, dict(format='TIFF', compression='tiff_lzw')),
    'tiff-deflate': (_RGB, dict(format='TIFF', compression='tiff_adobe_deflate')),
    'tiff-jpeg': (_RGB, dict(format='TIFF', compression='jpeg')),
    'tiff-fax': (_GREY.convert('1'), dict(format='TIFF', compression='group4')),
    'tiff-16-bits': (_DEEP, dict(format='TIFF')),
    'tiff-float': (_FLOAT, dict(format='TIFF')),
    'gif': (_RGB, dict(format='GIF')),
    'gif-moving': (_palette(0), dict(format='GIF', save_all=True, append_images=[_GREY])),
    'bmp': (_RGB, dict(format='BMP')),
    'ppm': (_RGB, dict(format='PPM')),
    'tga': (_RGB, dict(format='TGA', compression='tga_rle')),
    'ico': (_RGBA, dict(format='ICO', sizes=[(16, 16)])),
    'jpeg2000': (_RGB, dict(format='JPEG2000')),
    'avif': (_RGB, dict(format='AVIF')),
}


def _encoded(image, options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def files():
    """Name -> bytes of a picture; those that this Pillow cannot write are left out."""
    made = Unsaid()
    for name, (image, options) in PICTURES.items():
        try:
            made[name] = _encoded(image, options)
        except (OSError, KeyError):
            continue
    assert {'png', 'jpeg', 'webp', 'tiff', 'gif'} <= made.keys()
    return made


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return tmp_path_factory.mktemp('pictures') / 'picture'


def _damage(files, path, seed):
    rng = random.Random(seed)
    name = rng.choice(list(files))
    content, said = damage_bytes(files[name], rng)
    path.write_bytes(content)
    note(f'{name}: {said}')
    return rng


@fuzz
def test_pictures(files, path, seed):
    rng = _damage(files, path, seed)
    load = LoadImage(max_pixels=2**20, exif=rng.choice(('ignore', 'rotate')))
    result = outcome(lambda: load(dict(img_path=str(path))), str(path))
    if not isinstance(result, Exception):
        assert result['img'].shape == (*result['ori_shape'], 3)
        assert result['img'].dtype == np.uint8 and result['img'].size <= 3 * 2**20


@fuzz
def test_masks(files, path, seed):
    rng = _damage(files, path, seed)
    # A path of its own for each content: decoded masks are kept by path.
    own = path.with_name(f'{seed}')
    path.rename(own)
    mask = rng.choice((dict(png=str(own)), dict(png=str(own), ids=[3, 70000])))
    result = outcome(
        lambda: decode_mask(mask, H, W, 'annotations.json', 'masks[0]'),
        str(own),
        'annotations.json',
    )
    own.unlink()
    if not isinstance(result, Exception):
        assert result.shape == (H, W) and result.dtype == bool
