"""What users may pass, and what they hear when it is unusable."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.apis.inputs import make_history, make_prompts, make_record
from pixelsail_mm.datasets.errors import BadSampleError
from pixelsail_mm.datasets.transforms import LoadImage

MASKS = np.zeros((2, 6, 5), dtype=bool)
MASKS[0, :2, :2] = MASKS[1, 3:, 3:] = True


@pytest.mark.parametrize('prompts', [
    MASKS, torch.from_numpy(MASKS), list(MASKS),
    [Image.fromarray(m.astype(np.uint8) * 255) for m in MASKS],
    [dict(mask=MASKS[0]), dict(id=1, mask=torch.tensor(MASKS[1]))]])
def test_masks_in_every_spelling(prompts):
    made = make_prompts('x', prompts)
    assert [prompt['id'] for prompt in made] == [0, 1]
    for prompt, mask in zip(made, MASKS):
        np.testing.assert_array_equal(np.asarray(prompt['mask']) > 0, mask)


def test_boxes_points_and_mixtures():
    assert make_prompts('x', None) == []
    assert make_prompts('x', np.array([[1, 2, 3, 4], [5, 6, 7, 8]])) == [
        dict(id=0, box=[1, 2, 3, 4]), dict(id=1, box=[5, 6, 7, 8])]
    mixed = make_prompts('x', [[1, 2, 3, 4], (5, 6), dict(id=9, point=[7, 8]),
                               dict(id=2, mask=dict(size=[6, 5], counts='abc'))])
    assert mixed == [dict(id=0, box=[1, 2, 3, 4]), dict(id=1, point=[5, 6]),
                     dict(id=9, point=[7, 8]), dict(id=2, mask=dict(size=[6, 5], counts='abc'))]
    line = dict(scribble=[[1, 2], [3, 4]], width=2)
    assert make_prompts('x', [(5, 6), line])[1] == dict(line, id=1)


@pytest.mark.parametrize('prompts', [dict(box=[1, 2, 3, 4]), 'box', [[1, 2, 3]], ['box'], [None],
                                     np.zeros(4), np.zeros((1, 2, 3, 4)), [[1, [2]]]])
def test_unusable_prompts(prompts):
    with pytest.raises(BadSampleError, match=r'x: prompts'):
        make_prompts('x', prompts)


def test_history_forms():
    expected = [dict(human='q', gpt='a'), dict(human='r', gpt='b')]
    assert make_history('x', [('q', 'a'), dict(human='r', gpt='b')]) == expected
    assert make_history('x', None) == []
    for bad in (['qa'], [('q',)], [('q', None)], [dict(human='q')], [3]):
        with pytest.raises(BadSampleError, match=r'x: history\[0\]'):
            make_history('x', bad)


def test_images_of_every_kind(tmp_path):
    rgb = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(rgb).save(tmp_path / 'a.png')
    assert make_record('x', tmp_path / 'a.png', 'q')['img_path'] == str(tmp_path / 'a.png')
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=2)
    for image in (rgb, rgba, Image.fromarray(rgb)):
        np.testing.assert_array_equal(make_record('x', image, 'q')['img'], rgb)
    for image in (rgb[..., 0], Image.fromarray(rgb[..., 0])):
        np.testing.assert_array_equal(make_record('x', image, 'q')['img'],
                                      rgb[..., :1].repeat(3, axis=2))
    assert make_record('x', None, 'q').get('img') is None


def test_transparent_pixels_are_white_in_every_form(tmp_path):
    rgba = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4)
    rgba[1, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / 'a.png')
    pixels = LoadImage()(make_record('x', tmp_path / 'a.png', 'q'))['img']
    assert (pixels[1] == 255).all() and not (pixels[3] == 255).any()
    for image in (rgba, Image.fromarray(rgba)):
        np.testing.assert_array_equal(make_record('x', image, 'q')['img'], pixels)


def test_deep_pictures_are_scaled_in_every_form(tmp_path):
    deep = np.linspace(0, 65535, 20).reshape(4, 5).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / 'a.png')
    pixels = LoadImage()(make_record('x', tmp_path / 'a.png', 'q'))['img']
    assert len(np.unique(pixels)) == 20
    np.testing.assert_array_equal(make_record('x', Image.fromarray(deep), 'q')['img'], pixels)


@pytest.mark.parametrize('image, message', [
    ('nowhere.png', r'nowhere.png: image: no such file'),
    (np.zeros((4, 5, 3)), r'input 0: image: .*float64 \(4, 5, 3\)'),
    (np.zeros((3, 4, 5), np.uint8), r'\(3, 4, 5\)'),
    (np.zeros((0, 5, 3), np.uint8), r'\(0, 5, 3\)'),
    (torch.zeros(4, 5, 3, dtype=torch.uint8), 'torch.uint8'),
    (7, 'got int'),
])
def test_unusable_images(image, message):
    with pytest.raises(BadSampleError, match=message):
        make_record('input 0', image, 'q')


@pytest.mark.parametrize('text', ['', '  \n', None, 3])
def test_empty_text(text):
    with pytest.raises(BadSampleError, match='x: text'):
        make_record('x', None, text)


def test_text_must_name_given_prompts():
    image = np.zeros((6, 5, 3), np.uint8)
    with pytest.raises(BadSampleError, match=r'names <Prompt2>.*ids \[0, 1\]'):
        make_record('x', image, 'What is <Prompt2>?', MASKS)
    assert make_record('x', image, 'What is <Prompt1>?', MASKS)['prompts'][1]['id'] == 1
    # Without prompts of its own the question may refer to one that the image does not show.
    assert make_record('x', image, 'What is <Prompt2>?')['prompts'] == []
