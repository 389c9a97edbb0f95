"""PixelVisualizer: what must be visible is looked for in the pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.registry import VISUALIZERS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.visualization import PixelVisualizer
from pixelsail_mm.visualization.colours import PALETTE, colour_of, ink_on
from pixelsail_mm.visualization.drawing import draw_masks, fit, fit_masks
from pixelsail_mm.visualization.text import TextBlock, parse


def square(shape, *boxes):
    """One bool mask per (x1, y1, x2, y2), stacked as a tensor (n, H, W)."""
    masks = np.zeros((len(boxes), *shape), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return torch.from_numpy(masks)


def make(shape=(64, 64), **fields):
    meta = dict(
        ori_shape=shape,
        question=fields.pop('question', 'Please segment it.'),
        gt_text=fields.pop('gt_text', ''),
        sample_id='s',
    )
    sample = PixelDataSample(metainfo=meta)
    for key, value in fields.items():
        setattr(sample, key, value)
    return sample


def count(picture, colour):
    return int((picture == np.array(colour, np.uint8)).all(axis=2).sum())


@pytest.fixture
def visualizer():
    return PixelVisualizer()


def grey(shape=(64, 64), level=128):
    return np.full((*shape, 3), level, np.uint8)


def test_panels_appear_only_for_what_exists(visualizer):
    gt = square((64, 64), (8, 8, 24, 24))
    widths = [
        visualizer.draw(grey(), sample).shape[1]
        for sample in (make(), make(pred_masks=gt), make(pred_masks=gt, gt_masks=gt))
    ]
    assert widths[0] < widths[1] < widths[2]
    assert (
        visualizer.draw(
            grey(), make(pred_masks=gt, gt_masks=gt), draw_gt=False, draw_pred=False
        ).shape[1]
        == widths[0]
    )
    # A missing prediction is shown beside its truth.
    missing = make(pred_masks=square((64, 64)), gt_masks=gt)
    assert visualizer.draw(grey(), missing).shape[1] == widths[2]


def test_masks_are_visible_in_their_colours_on_any_background(visualizer):
    masks = square((64, 64), (4, 4, 20, 20), (30, 30, 60, 60))
    for level in (0, 128, 255):
        picture = visualizer.draw(grey(level=level), make(pred_masks=masks))
        assert count(picture, PALETTE[0]) > 100
        assert count(picture, PALETTE[1]) > 100
        assert count(picture, PALETTE[2]) == 0


def test_prompts_of_all_kinds_are_drawn_in_the_colour_of_their_id(visualizer):
    prompts = square((64, 64), (4, 4, 40, 40), (50, 50, 51, 51))
    sample = make(prompt_masks=prompts, prompt_ids=torch.tensor([3, 7]))
    picture = visualizer.draw(grey(), sample)
    assert count(picture, colour_of(3)) > 100
    assert count(picture, colour_of(7)) > 100
    assert count(picture, colour_of(0)) == 0
    # Questions may ask for the colour inside: it is not tinted.
    assert count(visualizer.draw(grey(level=77), sample), (77, 77, 77)) > 70000


def test_small_images_are_enlarged_and_large_ones_reduced():
    assert fit(grey((64, 64)), 320, 512).shape == (320, 320, 3)
    assert fit(grey((30, 64)), 320, 512).shape == (150, 320, 3)
    assert fit(grey((400, 100)), 320, 512).shape == (400, 100, 3)
    assert fit(grey((3000, 2000)), 320, 512).shape == (512, 341, 3)
    assert fit(grey((1, 900)), 320, 512).shape == (1, 512, 3)
    assert fit(grey((200, 100)), 320, 512).shape == (320, 160, 3)


def test_masks_survive_resizing():
    masks = square((1000, 1000), (500, 500, 501, 501), (0, 0, 500, 1000)).numpy()
    small = fit_masks(masks, (100, 100))
    assert small[0].sum() == 1
    assert small[1].sum() == 5000
    assert fit_masks(masks[:0], (100, 100)).shape == (0, 100, 100)
    np.testing.assert_array_equal(
        fit_masks(masks, (2000, 2000)), masks.repeat(2, axis=1).repeat(2, axis=2)
    )


@pytest.mark.parametrize('size', [320, 333, 427, 512])
def test_enlarged_masks_lie_where_the_image_shows_them(size):
    mask = np.zeros((1, 200, 200), bool)
    mask[0, 50:150, 20:180] = True
    image = np.repeat(mask[0, ..., None].astype(np.uint8) * 255, 3, axis=2)
    shown, large = fit(image, size, size)[..., 0] > 127, fit_masks(mask, (size, size))[0]
    for axis in (0, 1):
        ours, theirs = (np.nonzero(pixels)[axis].mean() for pixels in (large, shown))
        assert abs(ours - theirs) <= 0.1


def test_draw_masks_leaves_the_input_alone_and_fades_the_rest():
    image = grey((40, 40), 250)
    before = image.copy()
    mask = square((40, 40), (10, 10, 30, 30)).numpy()
    picture = draw_masks(image, mask, [(255, 0, 0)], alpha=0.5, dim=0.6)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(picture[20, 20], [252, 125, 125])
    assert picture[0, 0].max() < 250
    np.testing.assert_array_equal(draw_masks(image, mask & False, [(255, 0, 0)], 0.5, 0.6), image)


def test_iou_is_printed():
    from pixelsail_mm.visualization.pixel_visualizer import _iou_note

    gt = square((8, 8), (0, 0, 4, 4), (4, 4, 8, 8)).numpy()
    assert _iou_note(gt, gt) == 'IoU 1.00, 1.00'
    assert _iou_note(square((8, 8), (0, 0, 4, 2)).numpy(), gt) == 'IoU 0.50, 0.00'
    assert _iou_note(gt[:0], gt[:1]) == 'no mask, IoU 0.00'
    assert _iou_note(gt[:0], gt[:1] & False) == 'no mask, IoU 1.00'
    assert _iou_note(gt, None) == ''


def test_text_only_sample_and_missing_fields(visualizer):
    sample = make(shape=(0, 0), gt_text='4')
    sample.pred_text = ''
    picture = visualizer.draw(None, sample)
    assert picture.ndim == 3 and (picture < 100).any()


def test_longer_text_makes_a_taller_picture(visualizer):
    short = visualizer.draw(grey(), make(question='Where?'))
    long = visualizer.draw(grey(), make(question='Where is it? ' * 12))
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0]


def test_parse_chips_and_phrases():
    words = parse('<p> a cat </p> [SEG], then <Prompt12>: [SEG].')
    assert [(w.text, w.bold, w.space) for w in words] == [
        ('a', True, True),
        ('cat', True, True),
        ('mask 1', True, True),
        (',', False, False),
        ('then', False, True),
        ('Prompt12', True, True),
        (':', False, False),
        ('mask 2', True, True),
        ('.', False, False),
    ]
    assert [w.chip for w in words if w.chip] == [colour_of(0), colour_of(12), colour_of(1)]


def test_line_breaks_are_kept():
    block = TextBlock('Question', 'Which?\nA. red\n\nB. <Prompt1>\n', 400, 16, label_width=80)
    assert [[word.text for word in line] for line in block.lines] == [
        ['Which?'],
        ['A.', 'red'],
        ['B.', 'Prompt1'],
    ]


def test_wrapping_keeps_every_character_within_the_width():
    text = 'short ' * 20 + 'x' * 300
    block = TextBlock('Answer', text, width=300, size=16, label_width=80, max_lines=99)
    written = ''.join(word.text for line in block.lines for word in line)
    assert written == text.replace(' ', '')
    for line in block.lines:
        gaps = sum(word.space for word in line[1:]) * block._blank
        assert sum(block._width(word) for word in line) + gaps <= 220


def test_too_many_lines_end_in_an_ellipsis():
    block = TextBlock('Answer', 'word ' * 500, width=300, size=16, label_width=80, max_lines=4)
    assert len(block.lines) == 4 and block.lines[-1][-1].text == '…'


def test_ink_contrasts_with_every_colour():
    def luminance(colour):
        linear = [
            c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour
        ]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    for colour in (*PALETTE, (0, 0, 0), (255, 255, 255), (128, 128, 128)):
        high, low = sorted([luminance(colour), luminance(ink_on(colour))], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize(
    'image, fields, message',
    [
        (np.zeros((64, 64), np.uint8), {}, r'uint8 RGB of shape \(H, W, 3\), got uint8 \(64, 64\)'),
        (np.zeros((64, 64, 3)), {}, 'float64'),
        (
            grey((32, 64)),
            dict(gt_masks=square((64, 64), (0, 0, 9, 9))),
            'gt_masks of sample .s. is',
        ),
    ],
)
def test_faulty_input_is_named(visualizer, image, fields, message):
    with pytest.raises(ValueError, match=message):
        visualizer.draw(image, make(**fields))


def test_add_datasample_writes_the_drawn_picture(visualizer, tmp_path):
    sample = make(gt_masks=square((64, 64), (0, 0, 9, 9)))
    path = tmp_path / 'new/folder/a.png'
    visualizer.add_datasample('a', grey(), sample, out_file=path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), visualizer.draw(grey(), sample))


def test_add_datasample_without_file_goes_to_the_backends(tmp_path):
    visualizer = VISUALIZERS.build(
        dict(
            type='PixelVisualizer',
            name='with_backend',
            save_dir=str(tmp_path),
            vis_backends=[dict(type='LocalVisBackend')],
        )
    )
    visualizer.add_datasample('a', grey(), make(), step=3)
    assert (tmp_path / 'vis_data/vis_image/a_3.png').is_file()
