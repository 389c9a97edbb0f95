"""Images, mask files and a table of phrases, turned into our own format."""

import csv
import json
import random
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pixelsail_mm.datasets import AnnotationError, PixelChatDataset
from pixelsail_mm.datasets.converters.mask_table import masks_to_pixel_chat
from pixelsail_mm.datasets.readers.pixel_chat import validate_pixel_chat
from pixelsail_mm.datasets.transforms import LoadImage, LoadMasks
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.worlds.shapes_world.mask_table import draw_mask_table

H, W = 6, 8
HEAD = 'image,mask,phrase'


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(*pixels, size=(H, W), value=255):
    drawn = np.zeros(size, np.uint8)
    for row, column in pixels:
        drawn[row, column] = value
    return drawn


@pytest.fixture
def mine(tmp_path):
    """Two images and their masks: a and b of image 1, c of image 2."""
    for name in ('1.png', 'sub/2.jpg'):
        save(tmp_path / 'images' / name, np.zeros((H, W, 3), np.uint8))
    save(tmp_path / 'masks/a.png', mask((0, 0)))
    save(tmp_path / 'masks/b.png', mask((1, 1), (1, 2), value=1))
    save(tmp_path / 'masks/deep/c.png', mask((5, 7)))
    return tmp_path


@pytest.fixture
def convert(mine):

    def convert(*lines, head=HEAD, **options):
        (mine / 'masks.csv').write_text('\n'.join([head, *lines]) + '\n', encoding='utf-8')
        return masks_to_pixel_chat(mine, **options)

    return convert


def entries(folder, split='train'):
    return json.loads((folder / f'{split}.json').read_text('utf-8'))


GOOD = '1.png,a.png,the dot'


def test_an_entry_is_an_image_and_a_turn_a_phrase(mine, convert):
    done = convert(
        '1.png,a.png,the dot',
        'sub/2.jpg,deep/c.png,"a corner, right"',
        '1.png,b.png,the bar',
        val_share=0,
    )
    assert (done.images, done.turns, done.skipped) == (dict(train=2), dict(train=3), {})
    first, second = entries(mine)
    assert first == dict(
        id='1.png',
        image='1.png',
        height=H,
        width=W,
        turns=[
            dict(question='Please segment the dot.', answer='[SEG].', expression='the dot'),
            dict(question='Please segment the bar.', answer='[SEG].', expression='the bar'),
        ],
        masks=[dict(png='a.png'), dict(png='b.png')],
    )
    assert second['turns'][0]['expression'] == 'a corner, right'
    assert validate_pixel_chat(mine / 'train.json', mine / 'images', mine / 'masks') == []


def test_masks_of_one_phrase_are_joined(mine, convert):
    convert('1.png,a.png,all', '1.png,b.png,all', '1.png,b.png,the bar', val_share=0)
    dataset = PixelChatDataset(
        'train.json', data_root=str(mine), data_prefix=dict(img_path='images', mask_path='masks')
    )
    masks = LoadMasks()(LoadImage()(dict(dataset[0])))['gt_masks']
    assert np.array_equal(masks[0], mask((0, 0), (1, 1), (1, 2)) > 0)
    assert np.array_equal(masks[1], mask((1, 1), (1, 2)) > 0)


def test_order_and_spelling_of_columns_and_other_columns(mine, convert):
    convert('the dot,me,1.png, a.png', head='\ufeffPhrase,annotator,Image, mask', val_share=0)
    assert entries(mine)[0]['masks'] == [dict(png='a.png')]


def test_the_question_is_yours(mine, convert):
    convert('1.png,a.png,a {y}', val_share=0, question='Where is {x}?')
    assert entries(mine)[0]['turns'][0]['question'] == 'Where is a {y}?'
    with pytest.raises(ConfigError, match=r"must contain \{x\}.*'Where'"):
        convert(GOOD, question='Where', overwrite=True)


BAD = dict(
    blank_mask=('1.png,,the dot', 'blank cell', 'mask is blank'),
    short=('1.png', 'blank cell', 'mask and phrase is blank'),
    comma=('1.png,a.png,a dot, red', 'too many cells', 'put quotes'),
    token=('1.png,a.png,the [SEG] dot', 'reserved word', r'\[SEG\]'),
    prompt=('1.png,a.png,left of <Prompt20>', 'reserved word', '<Prompt20>'),
    no_image=('0.png,a.png,x', 'missing file', r'images.0\.png does not exist'),
    broken_image=('broken.png,a.png,x', 'unusable image', 'broken.png: cannot be'),
    image_folder=('sub,a.png,x', 'missing file', 'sub'),
    no_mask=('1.png,z.png,x', 'missing file', r'masks.z\.png does not exist'),
    broken_mask=('1.png,broken.png,x', 'unusable mask', 'broken.png: cannot be'),
    mask_folder=('1.png,deep,x', 'missing file', 'deep'),
    other_size=(
        '1.png,wide.png,x',
        'unusable mask',
        r'wide.png: mask size \(6, 9\).*differs.*\(6, 8\)',
    ),
    empty=('1.png,empty.png,x', 'empty mask', r'empty\.png: no pixel'),
    jpeg=('1.png,a.JPG,x', 'mask is a JPEG', 'save it as PNG'),
    twice=(GOOD, 'repeated row', 'the same as line 2'),
)


@pytest.mark.parametrize('name', BAD)
def test_rows_that_cannot_be_used_are_left_out_and_counted(mine, convert, name):
    line, kind, message = BAD[name]
    (mine / 'images/broken.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    (mine / 'masks/broken.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    save(mine / 'masks/wide.png', mask((0, 0), size=(H, W + 1)))
    save(mine / 'masks/empty.png', mask())
    save(mine / 'masks/a.JPG', mask((0, 0)))
    done = convert(GOOD, line, 'sub/2.jpg,deep/c.png,the corner', val_share=0)
    assert done.turns == dict(train=2) and set(done.skipped) == {kind}
    (reported,) = done.skipped[kind]
    assert reported.startswith('line 3: ') and re.search(message, reported), reported


def test_a_bad_row_says_nothing_about_its_image(mine, convert):
    done = convert('1.png,z.png,x,val', '1.png,a.png,x,train', head=HEAD + ',split')
    assert done.images == dict(train=1) and len(done.skipped['missing file']) == 1


@pytest.mark.parametrize(
    'lines, message',
    [([], 'none of 0 can be used'), (['1.png,z.png,x'], 'none of 1 can be used; line 2: .*z.png')],
)
def test_a_table_without_a_usable_row(convert, mine, lines, message):
    with pytest.raises(AnnotationError, match=r'masks\.csv: rows: ' + message):
        convert(*lines)
    assert not (mine / 'train.json').exists()


@pytest.mark.parametrize(
    'head, message',
    [
        (
            'image;mask;phrase',
            r"lacks the columns \['image', 'mask', 'phrase'\].*separated by commas",
        ),
        ('image,mask', r"lacks the columns \['phrase'\]"),
        ('', 'lacks the columns'),
    ],
)
def test_a_table_without_the_columns(convert, head, message):
    with pytest.raises(AnnotationError, match=message):
        convert(GOOD, head=head)


def test_no_table_and_a_table_that_is_no_text(mine):
    with pytest.raises(FileNotFoundError, match=r'masks\.csv does not exist; write'):
        masks_to_pixel_chat(mine)
    (mine / 'masks.csv').write_bytes(f'{HEAD}\n1.png,a.png,caf\u00e9\n'.encode('latin-1'))
    with pytest.raises(AnnotationError, match='cannot be read.*UTF-8'):
        masks_to_pixel_chat(mine)


def turned(path, orientation, pixels):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize('drawn_on', ['rotate', 'ignore'])
@pytest.mark.parametrize('orientation, given', [(6, None), (6, 'same'), (3, 'same')])
def test_masks_of_pictures_with_an_exif_rotation(mine, convert, drawn_on, orientation, given):
    """What is read is what the mask was drawn on: its pixel is the white one."""
    picture = np.zeros((H, W, 3), np.uint8)
    picture[0, 0] = 255
    turned(mine / 'images/1.png', orientation, picture)
    image = LoadImage(exif=drawn_on)(dict(img_path=str(mine / 'images/1.png'), notes=[]))['img']
    save(mine / 'masks/a.png', image[..., 0])
    done = convert('1.png,a.png,x', 'sub/2.jpg,deep/c.png,y', exif=given and drawn_on)
    assert not done.skipped
    (entry,) = [e for split in ('train', 'val') for e in entries(mine, split) if e['id'] == '1.png']
    assert entry['exif'] == drawn_on and (entry['height'], entry['width']) == image.shape[:2]
    (split,) = [s for s in ('train', 'val') if entry in entries(mine, s)]
    dataset = PixelChatDataset(
        f'{split}.json',
        data_root=str(mine),
        data_prefix=dict(img_path='images', mask_path='masks'),
        pipeline=[LoadImage(), LoadMasks()],
    )
    record = dataset[0]
    assert (record['img'][record['gt_masks'][0]] == 255).all() and record['gt_masks'].sum() == 1


def test_a_mask_that_fits_both_is_left_out(mine, convert):
    """A half turn keeps the size."""
    turned(mine / 'images/1.png', 3, np.zeros((H, W, 3), np.uint8))
    done = convert('1.png,a.png,x', 'sub/2.jpg,deep/c.png,y')
    assert list(done.skipped) == ['picture with an EXIF rotation']
    assert '--exif rotate' in done.skipped['picture with an EXIF rotation'][0]
    (split,) = done.images
    assert [entry['id'] for entry in entries(mine, split)] == ['sub/2.jpg']
    assert 'exif' not in entries(mine, split)[0]


def test_files_are_replaced_only_if_asked(mine, convert):
    (mine / 'val.json').write_text('mine')
    with pytest.raises(FileExistsError, match=r'val\.json is there already.*--overwrite'):
        convert(GOOD)
    assert (mine / 'val.json').read_text() == 'mine' and not (mine / 'train.json').exists()
    convert(GOOD, overwrite=True, val_share=0)
    assert (mine / 'train.json').exists() and not (mine / 'val.json').exists()


class TestSplits:
    @pytest.fixture
    def names(self, mine):
        names = [f'{i}.png' for i in range(40)]
        for name in names:
            save(mine / 'images' / name, np.zeros((H, W, 3), np.uint8))
        return names

    def splits(self, mine):
        return {
            entry['image']: split
            for split in ('train', 'val', 'test')
            if (mine / f'{split}.json').exists()
            for entry in entries(mine, split)
        }

    def test_of_the_table(self, mine, convert):
        done = convert(
            '1.png,a.png,x,test',
            '1.png,b.png,y,',
            'sub/2.jpg,deep/c.png,z,val',
            head=HEAD + ',split',
        )
        assert done.images == dict(val=1, test=1) and done.turns == dict(val=1, test=2)

    @pytest.mark.parametrize(
        'second, message',
        [
            ('val', 'line 3: 1.png is val here and train in line 2; an image belongs to one split'),
            ('valid', "line 3: 'valid' is none of train, val, test"),
        ],
    )
    def test_contradiction_and_misspelling(self, convert, second, message):
        done = convert('1.png,a.png,x,train', f'1.png,b.png,y,{second}', head=HEAD + ',split')
        assert done.skipped == dict(split=[message]) and done.turns == dict(train=1)

    def test_drawn_by_name_alone(self, mine, convert, names):
        lines = [f'{name},a.png,x' for name in names]
        convert(*lines, val_share=0.25)
        before = self.splits(mine)
        assert 4 <= list(before.values()).count('val') <= 16
        random.Random(1).shuffle(lines)
        convert(*lines[:30], val_share=0.25, overwrite=True)
        after = self.splits(mine)
        assert len(after) == 30 and all(before[name] == after[name] for name in after)

    def test_two_images_give_one_of_each(self, mine, convert):
        for share in (1e-9, 0.999999):
            done = convert(
                '1.png,a.png,x', 'sub/2.jpg,deep/c.png,y', val_share=share, overwrite=True
            )
            assert done.images == dict(train=1, val=1)

    def test_a_single_image_is_trained_on(self, convert):
        assert convert(GOOD).images == dict(train=1)

    @pytest.mark.parametrize('share', [-0.1, 1.0, float('nan')])
    def test_share_out_of_range(self, convert, share):
        with pytest.raises(ConfigError, match='val_share must be'):
            convert(GOOD, val_share=share)


# Before Python 3.11 the csv module neither writes nor reads a NUL.
TEXT = st.characters(codec='utf-8', exclude_characters='\0' if sys.version_info < (3, 11) else '')


@given(
    st.lists(
        st.tuples(
            st.sampled_from(['1.png', 'sub/2.jpg', 'x.png', '']),
            st.sampled_from(['a.png', 'b.png', 'deep/c.png', 'x.png']),
            st.text(TEXT, max_size=6),
        ),
        max_size=8,
    )
)
def test_every_row_is_written_or_counted(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp('any')
    for name in ('1.png', 'sub/2.jpg'):
        save(folder / 'images' / name, np.zeros((H, W, 3), np.uint8))
    for name in ('a.png', 'b.png', 'deep/c.png'):
        save(folder / 'masks' / name, mask((0, 0)))
    with open(folder / 'masks.csv', 'w', encoding='utf-8', newline='') as file:
        csv.writer(file).writerows([HEAD.split(','), *rows])
    try:
        done = masks_to_pixel_chat(folder)
    except AnnotationError as error:
        assert 'none of' in str(error)
        return
    turns = [
        turn
        for split in done.images
        for entry in entries(folder, split)
        for turn in (entry['masks'])
    ]
    parts = sum(len(item.get('union', [item])) for item in turns)
    assert parts + sum(map(len, done.skipped.values())) == len(rows)
    for split in done.images:
        assert (
            validate_pixel_chat(folder / f'{split}.json', folder / 'images', folder / 'masks') == []
        )


class TestDrawnExample:
    @pytest.fixture(scope='class')
    def drawn(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp('drawn') / 'mine'
        return draw_mask_table(folder, counts=dict(train=6, val=3)), folder

    def test_counts_and_conversion(self, drawn):
        counts, folder = drawn
        done = masks_to_pixel_chat(folder)
        assert counts['images'] == 9 and done.images == dict(train=6, val=3) and not done.skipped
        assert sum(done.turns.values()) == counts['rows'] and done.turns['val'] == 6
        assert len(list((folder / 'masks').iterdir())) == counts['masks']

    def test_shapes_that_no_preset_draws(self, drawn):
        with open(drawn[1] / 'masks.csv', encoding='utf-8', newline='') as file:
            phrases = {word for row in csv.DictReader(file) for word in row['phrase'].split()}
        assert {'crescent', 'arrow'} <= phrases
        assert not phrases & {'circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring'}

    def test_masks_lie_on_their_colours(self, drawn):
        """The mean colour under a mask is nearest to the colour that its phrase names."""
        from pixelsail_mm.worlds.shapes_world.presets import COLOURS

        colours = {name: COLOURS[name] for name in ('red', 'green', 'blue')}
        seen = 0
        with open(drawn[1] / 'masks.csv', encoding='utf-8', newline='') as file:
            for row in csv.DictReader(file):
                named = re.match(r'the (red|green|blue) (arrow|crescent)$', row['phrase'])
                if named is None:
                    continue
                pixels = np.asarray(Image.open(drawn[1] / 'images' / row['image']), float)
                inside = np.asarray(Image.open(drawn[1] / 'masks' / row['mask'])) > 0
                mean = pixels[inside].mean(0)
                mean *= 255 / mean.max()
                nearest = min(
                    colours,
                    key=lambda c: np.abs(np.array(colours[c]) * 255 / max(colours[c]) - mean).sum(),
                )
                assert nearest == named.group(1), row
                seen += 1
        assert seen >= 5

    def test_a_folder_with_something_is_left_alone(self, tmp_path):
        (tmp_path / 'x').touch()
        with pytest.raises(FileExistsError, match='not empty; it is left untouched'):
            draw_mask_table(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ['x']
