"""LoadImage, LoadMasks and LoadVisualPrompts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from pixelsail_mm.datasets.transforms import LoadImage, LoadMasks, LoadVisualPrompts
from pixelsail_mm.errors import BadSampleError
from tests.helpers.png_headers import png_header

H, W = 20, 30


def _pixels(height=H, width=W):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _loaded(**record):
    return LoadImage()(dict(img=_pixels(), **record))


class TestLoadImage:
    @pytest.mark.parametrize('height, width', [(H, W), (1, 1), (10000, 2), (2, 10000)])
    def test_png_is_read_exactly(self, tmp_path, height, width):
        pixels = _pixels(height, width)
        path = tmp_path / 'a.png'
        Image.fromarray(pixels).save(path)
        results = LoadImage()(dict(img_path=str(path)))
        assert np.array_equal(results['img'], pixels) and results['img'].dtype == np.uint8
        assert results['ori_shape'] == (height, width)

    @pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK', '1', 'LA', 'I;16'])
    def test_every_mode_becomes_rgb(self, tmp_path, mode):
        path = tmp_path / 'a.tif'
        image = (
            Image.fromarray(np.full((H, W), 300, np.uint16))
            if mode == 'I;16'
            else Image.fromarray(_pixels()).convert(mode)
        )
        assert image.mode == mode
        image.save(path)
        assert LoadImage()(dict(img_path=str(path)))['img'].shape == (H, W, 3)

    @pytest.mark.parametrize('record', [{}, dict(img_path=None), dict(img_path=''), dict(img=None)])
    def test_no_image_is_text_only(self, record):
        results = LoadImage()(record)
        assert results['img'] is None and results['ori_shape'] == (0, 0)

    def test_array_is_used_as_it_is(self):
        pixels = _pixels()
        results = LoadImage()(dict(img=pixels, img_path='does/not/exist.png'))
        assert results['img'] is pixels

    @pytest.mark.parametrize(
        'array',
        [_pixels().astype(np.float32), _pixels()[..., 0], _pixels()[..., :2], _pixels()[:0]],
    )
    def test_unsuitable_array(self, array):
        with pytest.raises(BadSampleError, match='uint8'):
            LoadImage()(dict(img=array, meta=dict(sample_id='s7')))

    def test_missing_file(self):
        with pytest.raises(BadSampleError, match='no such image; check data_root') as error:
            LoadImage()(dict(img_path='nowhere/a.png'))
        assert error.value.file == 'nowhere/a.png' and error.value.key == 'img_path'

    def test_folder_instead_of_a_file(self, tmp_path):
        with pytest.raises(BadSampleError, match='cannot be decoded'):
            LoadImage()(dict(img_path=str(tmp_path)))

    @pytest.mark.filterwarnings('ignore:.*:UserWarning:PIL')
    @pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'bmp', 'tif', 'webp'])
    def test_truncated_file(self, tmp_path, suffix):
        path = tmp_path / f'a.{suffix}'
        Image.fromarray(_pixels()).save(path)
        data = path.read_bytes()
        for size in (0, 3, 30, len(data) // 2):
            path.write_bytes(data[:size])
            with pytest.raises(BadSampleError, match='cannot be decoded'):
                LoadImage()(dict(img_path=str(path)))

    @pytest.mark.filterwarnings('ignore:.*:UserWarning:PIL')
    @pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'tif', 'webp'])
    def test_damaged_bytes_are_read_or_rejected(self, tmp_path, suffix):
        """Whatever a decoder raises on damage comes out as a bad sample."""
        path = tmp_path / f'a.{suffix}'
        Image.fromarray(_pixels()).save(path)
        data = path.read_bytes()
        rng = np.random.default_rng(0)
        rejected = 0
        for _ in range(100):
            damaged = bytearray(data)
            for position in rng.integers(0, min(len(data), 200), 4):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                assert LoadImage()(dict(img_path=str(path)))['img'].ndim == 3
            except BadSampleError:
                rejected += 1
        assert rejected > 0

    def test_not_an_image(self, tmp_path):
        path = tmp_path / 'a.png'
        path.write_text('hello')
        with pytest.raises(BadSampleError, match='cannot be decoded'):
            LoadImage()(dict(img_path=str(path)))

    def test_huge_image_is_rejected_before_decoding(self, tmp_path):
        path = tmp_path / 'a.png'
        Image.fromarray(_pixels()).save(path)
        with pytest.raises(BadSampleError, match=r'30x20 pixels exceeds max_pixels=599'):
            LoadImage(max_pixels=599)(dict(img_path=str(path)))
        assert LoadImage(max_pixels=600)(dict(img_path=str(path)))['ori_shape'] == (H, W)

    def test_the_default_limit_looks_at_the_header(self, tmp_path):
        """Decoding 88 million pixels took 1.2 GB; what is only a header could not be decoded."""
        path = png_header(tmp_path / 'a.png', 9400, 9400)
        with pytest.raises(
            BadSampleError, match=r'a\.png: img_path: .*9400x9400 .*=67108864; raise LoadImage\.max'
        ):
            LoadImage()(dict(img_path=str(path)))
        with pytest.raises(BadSampleError, match='cannot be decoded'):
            LoadImage()(dict(img_path=str(png_header(path, 8192, 8192))))

    @pytest.mark.parametrize('limit', [10.0, math.inf])
    def test_pillow_has_a_limit_of_its_own(self, tmp_path, limit):
        path = png_header(tmp_path / 'a.png', 30000, 30000)
        with pytest.raises(BadSampleError, match=rf'max_pixels={limit}.*Pillow.*shrink the image'):
            LoadImage(limit)(dict(img_path=str(path)))

    def test_stated_size_must_agree(self):
        assert _loaded(height=H, width=W)['ori_shape'] == (H, W)
        with pytest.raises(BadSampleError, match='states 30x20 .* image is 20x30'):
            _loaded(height=W, width=H)


class TestLoadMasks:
    def test_order_and_shape(self):
        masks = np.eye(2, dtype=bool)[:, :, None].repeat(W, 2).repeat(H // 2, 1)
        results = LoadMasks()(_loaded(masks=[masks[1], masks[0].astype(np.uint8)]))
        assert np.array_equal(results['gt_masks'], masks[[1, 0]])
        assert results['gt_masks'].dtype == bool

    def test_no_masks(self):
        assert LoadMasks()(_loaded())['gt_masks'].shape == (0, H, W)
        assert LoadMasks()(LoadImage()({}))['gt_masks'].shape == (0, 0, 0)

    def test_an_empty_target_is_legal(self):
        assert not LoadMasks()(_loaded(masks=[np.zeros((H, W), bool)]))['gt_masks'].any()

    def test_fault_names_the_mask(self):
        good = np.zeros((H, W), bool)
        with pytest.raises(BadSampleError, match=r'masks\[1\]'):
            LoadMasks()(_loaded(masks=[good, good[1:]]))

    def test_masks_need_an_image(self):
        with pytest.raises(BadSampleError, match='s7: masks: 1 masks but no image'):
            LoadMasks()(LoadImage()(dict(masks=[[]], meta=dict(sample_id='s7'))))

    def test_record_is_not_changed(self):
        mask = np.zeros((H, W), bool)
        results = LoadMasks()(_loaded(masks=[mask]))
        results['gt_masks'][:] = True
        assert not mask.any()


def _prompts(*prompts, **kwargs):
    return LoadVisualPrompts(**kwargs)(_loaded(prompts=list(prompts)))


class TestLoadVisualPrompts:
    def test_kinds(self):
        mask = np.zeros((H, W), bool)
        mask[3:9, 2:22] = True
        results = _prompts(
            dict(id=4, point=[5.9, 7.2]), dict(id=0, box=[2, 3, 6.5, 9]), dict(id=14, mask=mask)
        )
        assert results['prompt_ids'] == [14, 0, 4]
        assert results['prompt_kinds'] == ['mask', 'box', 'point']
        assert np.array_equal(results['prompt_masks'][0], mask)
        assert np.argwhere(results['prompt_masks'][2]).tolist() == [[7, 5]]
        rows, cols = np.nonzero(results['prompt_masks'][1])
        assert (rows.min(), rows.max(), cols.min(), cols.max()) == (3, 8, 2, 6)
        assert results['prompt_masks'][1].sum() == 6 * 5

    def test_order_is_by_area_and_stable(self):
        prompts = [
            dict(id=1, box=[0, 0, 2, 2]),
            dict(id=2, box=[0, 0, 9, 9]),
            dict(id=3, box=[5, 5, 7, 7]),
        ]
        assert _prompts(*prompts)['prompt_ids'] == [2, 1, 3]
        unsorted = _prompts(*prompts, sort_by_area=False)
        assert unsorted['prompt_ids'] == [1, 2, 3]
        assert unsorted['prompt_masks'].sum((1, 2)).tolist() == [4, 81, 4]

    def test_no_prompts(self):
        results = LoadVisualPrompts()(_loaded())
        assert results['prompt_masks'].shape == (0, H, W) and results['prompt_ids'] == []

    def test_box_is_clipped_to_the_image(self):
        masks = _prompts(dict(id=0, box=[-5, -5, 3, 4]), dict(id=1, box=[28, 18, 99, 99]))
        assert masks['prompt_masks'].sum((1, 2)).tolist() == [12, 4]
        assert masks['prompt_masks'][0][:4, :3].all() and masks['prompt_masks'][1][18:, 28:].all()

    @pytest.mark.parametrize(
        'prompt, reason',
        [
            (dict(id=17, point=[1, 1]), r'prompt id 17 is out of range 0\.\.14'),
            (dict(id=-1, point=[1, 1]), r'out of range 0\.\.14'),
            (dict(id=True, point=[1, 1]), r'out of range 0\.\.14'),
            (dict(id='3', point=[1, 1]), r'out of range 0\.\.14'),
            (dict(point=[1, 1]), r'out of range 0\.\.14'),
            (dict(id=1), 'needs exactly one of'),
            (dict(id=1, point=[1, 1], box=[1, 1, 2, 2]), 'needs exactly one of'),
            (dict(id=1, point=[W, 0]), 'empty or outside the image of 30x20'),
            (dict(id=1, point=[0, -0.5]), 'outside the image'),
            (dict(id=1, point=[1, 2, 3]), 'must hold 2 finite'),
            (dict(id=1, point=[float('nan'), 2]), 'must hold 2 finite'),
            (dict(id=1, box=[30, 0, 40, 5]), 'outside the image'),
            (dict(id=1, box=[-5, 0, 0, 5]), 'outside the image'),
            (dict(id=1, box=[5, 5, 5, 9]), 'is empty'),
            (dict(id=1, box=[9, 5, 5, 9]), 'x1 < x2'),
            (dict(id=1, box=[1, 2, 3]), 'must hold 4 finite'),
            (dict(id=1, box=[1, 2, 3, float('inf')]), 'must hold 4 finite'),
            (dict(id=1, box='all'), 'must hold 4 finite'),
            (dict(id=1, point=[[1], 2]), 'must hold 2 finite'),
            (dict(id=1, scribble=[[-5, 3], [-2, 9]]), 'scribble .* is empty or outside the image'),
            (dict(id=1, scribble=[[30.6, 3], [30.6, 9]], width=1), 'outside the image of 30x20'),
            (dict(id=1, scribble=[]), 'at least one point'),
            (dict(id=1, scribble=[1, 2]), 'at least one point'),
            (dict(id=1, scribble=[[1, 2], [3]]), 'at least one point'),
            (dict(id=1, scribble=[[1, 2, 3]]), 'at least one point'),
            (dict(id=1, scribble=[[1, float('nan')]]), 'finite numbers'),
            (dict(id=1, scribble='line'), 'finite numbers'),
            (dict(id=1, scribble=[[1, 2]], width=0.5), 'width 0.5 .* at least 1'),
            (dict(id=1, scribble=[[1, 2]], width='fat'), 'width fat'),
            (dict(id=1, scribble=[[1, 2]], point=[1, 2]), 'needs exactly one of'),
            (dict(id=1, mask=np.zeros((H, W), bool)), 'mask is empty'),
            (dict(id=1, mask=np.ones((W, H), bool)), 'mask size'),
        ],
    )
    def test_faults_are_named(self, prompt, reason):
        with pytest.raises(BadSampleError, match=reason) as error:
            _prompts(dict(id=0, point=[1, 1]), prompt)
        assert error.value.key.startswith('prompts[1]')

    def test_ids_are_used_once(self):
        with pytest.raises(BadSampleError, match='prompt id 3 is used twice'):
            _prompts(dict(id=3, point=[1, 1]), dict(id=3, point=[2, 2]))

    def test_prompts_need_an_image(self):
        with pytest.raises(BadSampleError, match='1 visual prompts but no image'):
            LoadVisualPrompts()(LoadImage()(dict(prompts=[dict(id=0, point=[1, 1])])))

    @given(st.floats(-40, 40), st.floats(-40, 40), st.floats(0.01, 60), st.floats(0.01, 60))
    def test_a_box_covers_what_it_touches_or_is_rejected(self, x, y, width, height):
        box = [x, y, x + width, y + height]
        rows, cols = np.mgrid[:H, :W]
        touched = (cols < box[2]) & (cols + 1 > box[0]) & (rows < box[3]) & (rows + 1 > box[1])
        try:
            assert np.array_equal(_prompts(dict(id=0, box=box))['prompt_masks'][0], touched)
        except BadSampleError:
            assert not touched.any()

    @pytest.mark.parametrize(
        'points, width, rows, cols',
        [
            # A line through pixel centres: those of its row, ends included, and no others.
            ([[2.5, 3.5], [6.5, 3.5]], 1, slice(3, 4), slice(2, 7)),
            # Pen of 3: one more pixel on every side; the corners are 1.41 away from the ends.
            ([[2.5, 3.5], [6.5, 3.5]], 3, slice(2, 5), slice(1, 8)),
            ([[6.5, 3.5], [2.5, 3.5]], None, slice(2, 5), slice(1, 8)),
            # A dot in a pixel and on a corner of pixels.
            ([[5.5, 5.5]], 3, slice(4, 7), slice(4, 7)),
            ([[4, 4]], 2, slice(3, 5), slice(3, 5)),
            # Too thin to reach a centre: the pixel that contains it.
            ([[5.99, 7.01]], 1, slice(7, 8), slice(5, 6)),
            # Clipped: one end outside, both outside, centre outside.
            ([[-10.5, 3.5], [1.5, 3.5]], 1, slice(3, 4), slice(0, 2)),
            ([[2.5, -9], [2.5, 99]], 1, slice(0, H), slice(2, 3)),
            ([[-1, 5.5]], 3, slice(5, 6), slice(0, 1)),
        ],
    )
    def test_scribbles_by_hand(self, points, width, rows, cols):
        expected = np.zeros((H, W), bool)
        expected[rows, cols] = True
        pen = {} if width is None else dict(width=width)
        results = _prompts(dict(id=0, scribble=points, **pen))
        assert np.array_equal(results['prompt_masks'][0], expected)
        assert results['prompt_kinds'] == ['scribble']

    def test_scribbles_have_corners_and_slopes(self):
        corner = _prompts(
            dict(id=0, scribble=np.array([[1.5, 1.5], [4.5, 1.5], [4.5, 4.5]]), width=1)
        )['prompt_masks'][0]
        assert np.argwhere(corner).tolist() == [
            [1, 1],
            [1, 2],
            [1, 3],
            [1, 4],
            [2, 4],
            [3, 4],
            [4, 4],
        ]
        slope = _prompts(dict(id=0, scribble=[[1.5, 1.5], [3.5, 3.5]], width=1))['prompt_masks'][0]
        assert np.argwhere(slope).tolist() == [[1, 1], [2, 2], [3, 3]]
        # The neighbours of the diagonal are 0.71 away.
        fat = _prompts(dict(id=0, scribble=[[1.5, 1.5], [2.5, 2.5]], width=1.5))['prompt_masks'][0]
        assert np.argwhere(fat).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]

    @given(
        st.lists(st.tuples(st.floats(0, W - 0.01), st.floats(0, H - 0.01)), min_size=1, max_size=4),
        st.floats(1, 6),
    )
    def test_a_scribble_has_no_gaps_and_covers_its_points(self, points, width):
        mask = _prompts(dict(id=0, scribble=points, width=width))['prompt_masks'][0]
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        assert all(mask[int(y), int(x)] for x, y in points)
        # Nothing is farther away than the pen and half a pixel's diagonal reach.
        low, high = np.min(points, 0) - width / 2 - 0.71, np.max(points, 0) + width / 2 + 0.71
        rows, cols = np.nonzero(mask)
        assert (cols + 0.5 >= low[0]).all() and (cols + 0.5 <= high[0]).all()
        assert (rows + 0.5 >= low[1]).all() and (rows + 0.5 <= high[1]).all()
