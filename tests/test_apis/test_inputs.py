"""What users may pass, and what they hear when it is unusable."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.apis.inputs import make_history, make_prompts, make_record
from pixelsail_mm.datasets.transforms import LoadImage
from pixelsail_mm.errors import BadSampleError
from tests.helpers.png_headers import png_header

MASKS = np.zeros((2, 6, 5), dtype=bool)
MASKS[0, :2, :2] = MASKS[1, 3:, 3:] = True


@pytest.mark.parametrize(
    'prompts',
    [
        MASKS,
        torch.from_numpy(MASKS),
        list(MASKS),
        [Image.fromarray(m.astype(np.uint8) * 255) for m in MASKS],
        [dict(mask=MASKS[0]), dict(id=1, mask=torch.tensor(MASKS[1]))],
    ],
)
def test_masks_in_every_spelling(prompts):
    made = make_prompts('x', prompts)
    assert [prompt['id'] for prompt in made] == [0, 1]
    for prompt, mask in zip(made, MASKS):
        np.testing.assert_array_equal(np.asarray(prompt['mask']) > 0, mask)


def test_boxes_points_and_mixtures():
    assert make_prompts('x', None) == []
    assert make_prompts('x', np.array([[1, 2, 3, 4], [5, 6, 7, 8]])) == [
        dict(id=0, box=[1, 2, 3, 4]),
        dict(id=1, box=[5, 6, 7, 8]),
    ]
    mixed = make_prompts(
        'x',
        [
            [1, 2, 3, 4],
            (5, 6),
            dict(id=9, point=[7, 8]),
            dict(id=2, mask=dict(size=[6, 5], counts='abc')),
        ],
    )
    assert mixed == [
        dict(id=0, box=[1, 2, 3, 4]),
        dict(id=1, point=[5, 6]),
        dict(id=9, point=[7, 8]),
        dict(id=2, mask=dict(size=[6, 5], counts='abc')),
    ]
    line = dict(scribble=[[1, 2], [3, 4]], width=2)
    assert make_prompts('x', [(5, 6), line])[1] == dict(line, id=1)


@pytest.mark.parametrize(
    'prompts',
    [
        dict(box=[1, 2, 3, 4]),
        'box',
        [[1, 2, 3]],
        ['box'],
        [None],
        np.zeros(4),
        np.zeros((1, 2, 3, 4)),
        [[1, [2]]],
        5,
        torch.zeros(2, 2).to_sparse(),
        [dict(mask=[torch.zeros(2, 2).to_sparse()][0])],
    ],
)
def test_unusable_prompts(prompts):
    with pytest.raises(BadSampleError, match=r'x: prompts'):
        make_prompts('x', prompts)


def test_history_forms():
    expected = [dict(human='q', gpt='a'), dict(human='r', gpt='b')]
    assert make_history('x', [('q', 'a'), dict(human='r', gpt='b')]) == expected
    assert make_history('x', None) == []
    with pytest.raises(BadSampleError, match='history: expected a list'):
        make_history('x', 3)
    with pytest.raises(BadSampleError, match='answer_prefix: must be a text'):
        make_record('x', None, 'q', answer_prefix=3)
    odd = [dict(id=np.zeros(3), box=[1, 2, 3, 4])]  # refused where prompts are drawn
    with pytest.raises(BadSampleError, match='names <Prompt0>'):
        make_record('x', None, '<Prompt0>?', odd)
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
        np.testing.assert_array_equal(
            make_record('x', image, 'q')['img'], rgb[..., :1].repeat(3, axis=2)
        )
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


@pytest.mark.parametrize(
    'image, message',
    [
        ('nowhere.png', r'nowhere.png: image: no such file'),
        ('x' * 5000, r'xxx: image: no such file'),
        ('a\x00b.png', r'image: no such file'),
        (np.zeros((4, 5, 3)), r'input 0: image: .*float64 \(4, 5, 3\)'),
        (np.zeros((3, 4, 5), np.uint8), r'\(3, 4, 5\)'),
        (np.zeros((0, 5, 3), np.uint8), r'\(0, 5, 3\)'),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), 'torch.uint8'),
        (7, 'got int'),
    ],
)
def test_unusable_images(image, message):
    with pytest.raises(BadSampleError, match=message):
        make_record('input 0', image, 'q')


def test_pil_images_that_cannot_be_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'whole.png')
    data = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(data[: len(data) // 2])
    for image in (
        Image.open(tmp_path / 'cut.png'),
        Image.fromarray(np.full((4, 4), np.nan, np.float32)),
    ):
        with pytest.raises(BadSampleError, match='input 0: image: .*cannot be read .*pass another'):
            make_record('input 0', image, 'q')


def test_a_pil_image_is_refused_by_its_header(tmp_path):
    path = png_header(tmp_path / 'a.png', 9400, 9400)
    with (
        Image.open(path) as image,
        pytest.raises(
            BadSampleError,
            match=r'input 0: image: .*9400x9400 .*max_pixels=67108864; raise LoadImage',
        ),
    ):
        make_record('input 0', image, 'q')
    with Image.open(path) as image, pytest.raises(BadSampleError, match='cannot be read'):
        make_record('input 0', image, 'q', max_pixels=9400**2)  # as the config may say


@pytest.mark.parametrize('text', ['', '  \n', None, 3])
def test_empty_text(text):
    with pytest.raises(BadSampleError, match='x: text'):
        make_record('x', None, text)


IMAGE = np.zeros((6, 5, 3), np.uint8)


@pytest.mark.parametrize(
    'prompts, given',
    [
        (MASKS, r'the prompts given have the ids \[0, 1\]'),
        (None, 'no prompt is given'),
        ([], 'no prompt'),
    ],
)
def test_a_question_names_given_prompts_only(prompts, given):
    for inputs in (
        dict(text='What is <Prompt2>?'),
        dict(text='And its colour?', history=[('What is <Prompt2>?', 'A ship.')]),
    ):
        with pytest.raises(BadSampleError, match=f'x: .*names <Prompt2>.*{given}.*pass '):
            make_record('x', IMAGE, prompts=prompts, **inputs)


def test_which_text_is_at_fault():
    with pytest.raises(BadSampleError, match='x: text: it names <Prompt0>'):
        make_record('x', None, 'What is <Prompt0>?')
    with pytest.raises(BadSampleError, match=r'x: history\[1\]: it names <Prompt3>'):
        make_record('x', IMAGE, 'Why?', MASKS, [('What?', 'It.'), ('<Prompt3>?', 'It.')])
    with pytest.raises(BadSampleError, match='x: text: .*prompt id 22 is out of range 0..14'):
        make_record('x', IMAGE, 'What is <Prompt22>?', MASKS)


def test_the_beginning_of_an_answer_names_given_prompts_only():
    with pytest.raises(BadSampleError, match='x: answer_prefix: it names <Prompt2>'):
        make_record('x', IMAGE, 'What?', MASKS, answer_prefix='Next to <Prompt2>')
    with pytest.raises(BadSampleError, match='x: answer_prefix: <prompt 1> .*write <Prompt1>'):
        make_record('x', IMAGE, 'What?', MASKS, answer_prefix='<prompt 1> is')
    record = make_record('x', IMAGE, 'What is <Prompt0>?', MASKS, answer_prefix='<Prompt1>')
    assert record['meta']['warnings'] == []


@pytest.mark.parametrize(
    'spelling',
    [
        '<prompt0>',
        '<Prompt 0>',
        '<PROMPT0>',
        '< Prompt0 >',
        '<Prompt_0>',
        '<prompt-0>',
        '<Prompt00>',
        '<Prompt\u0660>',
    ],
)
@pytest.mark.parametrize('prompts', [MASKS, None])
def test_other_spellings_are_refused(spelling, prompts):
    with pytest.raises(BadSampleError, match=f'x: text: {spelling} .*write <Prompt0>'):
        make_record('x', IMAGE, f'What is {spelling}?', prompts)


def test_named_prompts_are_accepted():
    record = make_record(
        'x', IMAGE, 'Is <Prompt1> left of it?', MASKS, [('What is <Prompt0>?', 'A ship.')]
    )
    assert len(record['prompts']) == 2 and record['meta']['warnings'] == []


@pytest.mark.parametrize('text', ['What is <b>?', 'What is <NO_Prompt>?', 'a prompt 0, <prompt>'])
def test_other_words_in_brackets_are_no_prompts(text):
    assert make_record('x', IMAGE, text)['meta']['warnings'] == []


def test_an_answer_may_name_what_is_not_there():
    """What the model said once cannot be mended by the user."""
    history = [('What is left?', '<Prompt7>, and <prompt 3>.')]
    assert make_record('x', IMAGE, 'And right?', history=history)['meta']['warnings'] == []


def test_a_prompt_that_no_text_names_is_said():
    record = make_record('x', IMAGE, 'What is <Prompt1>?', [*MASKS, [1, 1]])
    assert record['meta']['warnings'] == [
        'no text names <Prompt0>, <Prompt2>: the region is marked, but the question does not ask '
        'about it'
    ]
    assert (
        make_record('x', IMAGE, 'And now?', MASKS[:1], [('Where?', 'Left of <Prompt0>.')])['meta'][
            'warnings'
        ]
        == []
    )
