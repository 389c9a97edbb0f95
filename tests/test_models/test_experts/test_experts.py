"""Vision experts: small random models of the real architectures, cached files, bad input."""

import numpy as np
import pytest
import torch

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts import CachedExpert, Mask2FormerExpert, SAM2Expert
from pixelsail_mm.structures import PixelDataSample
from tests.helpers.tiny_experts import MASK2FORMER, SAM2


def sample(height=40, width=56, **meta):
    result = PixelDataSample(metainfo=dict(sample_id='s', **meta))
    result.image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return result


@pytest.fixture(scope='module')
def mask2former():
    torch.manual_seed(0)
    return Mask2FormerExpert(MASK2FORMER, size=64)


@pytest.fixture(scope='module')
def sam2():
    torch.manual_seed(0)
    return SAM2Expert(SAM2, size=128)


@pytest.mark.parametrize('name', ['mask2former', 'sam2'])
def test_features_are_dense_and_frozen(name, request):
    expert = request.getfixturevalue(name)
    text = PixelDataSample(metainfo=dict(sample_id='text', img_path=None))
    first, nothing, second = expert([sample(), text, sample(64, 32)])
    assert nothing is None
    assert first.shape[0] == second.shape[0] == 32 and first.ndim == 3
    assert first.dtype == torch.float32 and not first.requires_grad
    assert not expert.model.training
    assert not any(p.requires_grad for p in expert.model.parameters())


def test_mask2former_equals_the_whole_model(mask2former):
    one = sample()
    pixels = mask2former.processor(images=one.image.permute(1, 2, 0).numpy(), return_tensors='pt')[
        'pixel_values'
    ]
    with torch.no_grad():
        whole = mask2former.model(pixels).pixel_decoder_last_hidden_state[0]
    torch.testing.assert_close(mask2former([one])[0], whole)


def test_sam2_is_the_coarsest_level(sam2):
    assert sam2([sample()])[0].shape == (32, 8, 8)


def test_image_is_read_when_it_was_not_kept(mask2former, tmp_path):
    from PIL import Image

    one = sample()
    path = tmp_path / 'image.png'
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(path)
    read = PixelDataSample(metainfo=dict(sample_id='s', img_path=str(path)))
    torch.testing.assert_close(mask2former([read])[0], mask2former([one])[0])


def test_pretrained_folder_gives_the_same_features(mask2former, tmp_path):
    mask2former.model.save_pretrained(tmp_path)
    mask2former.processor.save_pretrained(tmp_path)
    loaded = Mask2FormerExpert(str(tmp_path), size=64)
    one = sample()
    torch.testing.assert_close(loaded([one])[0], mask2former([one])[0])


def test_incomplete_weights_are_refused(mask2former, tmp_path):
    """Hugging Face would fill the gap with random numbers and only warn."""
    from safetensors.torch import load_file, save_file

    mask2former.model.save_pretrained(tmp_path)
    mask2former.processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    name = 'model.pixel_level_module.decoder.mask_projection.weight'
    del weights[name]
    save_file(weights, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match=name):
        Mask2FormerExpert(str(tmp_path), size=64)


def test_sam2_pretrained_folder_gives_the_same_features(sam2, tmp_path):
    sam2.model.save_pretrained(tmp_path)
    sam2.processor.save_pretrained(tmp_path)
    one = sample()
    torch.testing.assert_close(SAM2Expert(str(tmp_path), size=128)([one])[0], sam2([one])[0])


def test_sam2_adds_the_no_memory_embedding(sam2):
    """The official predictor's image_embed holds it; it is zero in a fresh model."""
    one = sample()
    plain = sam2([one])[0]
    shift = torch.arange(32.0)
    with torch.no_grad():
        sam2.model.no_memory_embedding.copy_(shift.view(1, 1, -1))
        shifted = sam2([one])[0]
        sam2.model.no_memory_embedding.zero_()
    torch.testing.assert_close(shifted - plain, shift.view(-1, 1, 1).expand(32, 8, 8))


def test_sam2_at_another_size_is_refused():
    with pytest.raises(ValueError, match='works at 128'):
        SAM2Expert(SAM2, size=256)


def test_autocast_of_the_student_does_not_reach_the_expert(mask2former):
    one = sample()
    exact = mask2former([one])[0]
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(mask2former([one])[0], exact, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    'build',
    [
        lambda: Mask2FormerExpert(MASK2FORMER, 64, dtype='bfloat16'),
        lambda: SAM2Expert(SAM2, 128, dtype='bfloat16'),
    ],
)
def test_expert_follows_the_features_to_the_gpu(build):
    from pixelsail_mm.models.losses import ExpertDistillLoss

    loss = ExpertDistillLoss(build(), in_channels=3, expert_channels=32).cuda()
    value = loss([torch.randn(4, 4, 3, device='cuda')], [sample()])
    assert value.device.type == 'cuda' and value.isfinite()
    assert next(loss.expert.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    'size, shape', [((1, 1400), (32, 8, 336)), ((3000, 2), (32, 336, 8)), ((1, 1), (32, 16, 16))]
)
def test_mask2former_of_the_thinnest_images(mask2former, size, shape):
    """Above 1333:1 transformers would ask for a side of zero pixels."""
    assert mask2former([sample(*size)])[0].shape == shape


def test_three_pixels_high_is_not_taken_for_channels(mask2former):
    """(3,3,W) is ambiguous to the processors unless they are told the order."""
    thin = sample(3, 3)
    wide = PixelDataSample(metainfo=dict(sample_id='s'))
    wide.image = thin.image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert mask2former([thin])[0].shape == mask2former([wide])[0].shape


def test_unreadable_image_is_named(mask2former, tmp_path):
    path = tmp_path / 'broken.png'
    path.write_bytes(b'no image')
    with pytest.raises(ValueError, match='broken.png'):
        mask2former([PixelDataSample(metainfo=dict(img_path=str(path)))])


def test_image_in_memory_must_be_kept(mask2former):
    with pytest.raises(ValueError, match='keep_image'):
        mask2former([PixelDataSample(metainfo=dict(img_path=None, ori_shape=(4, 6)))])


@pytest.mark.parametrize('expert', [Mask2FormerExpert, SAM2Expert])
def test_missing_weights_are_named(expert, tmp_path):
    with pytest.raises(FileNotFoundError, match='no_weights'):
        expert(str(tmp_path / 'no_weights'))


def test_cached_features_follow_the_image_path(tmp_path):
    feature = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / 'expert' / 'train').mkdir(parents=True)
    np.savez(
        tmp_path / 'expert' / 'train' / '7.npz',
        feature=feature.astype(np.int8),
        scale=np.float32(0.5),
    )
    expert = CachedExpert(str(tmp_path / 'expert'), str(tmp_path / 'images'))
    image = PixelDataSample(metainfo=dict(img_path=str(tmp_path / 'images/train/7.png')))
    text = PixelDataSample(metainfo=dict(img_path=None))
    read, nothing = expert([image, text])
    assert nothing is None and read.dtype == torch.float32
    assert np.array_equal(read.numpy(), feature * 0.5)


def _write(file, feature, scale=None):
    """Write one feature file in the format that its suffix says."""
    from safetensors.numpy import save_file

    arrays = dict(feature=feature) | ({} if scale is None else dict(scale=np.float32([scale])))
    if file.suffix == '.npy':
        np.save(file, feature)
    elif file.suffix == '.npz':
        np.savez(file, **arrays)
    else:
        save_file(arrays, file)


@pytest.mark.parametrize('suffix', ['.npz', '.npy', '.safetensors'])
@pytest.mark.parametrize('dtype, scale', [('float32', None), ('float16', None), ('int8', 0.25)])
def test_cache_formats(suffix, dtype, scale, tmp_path):
    if suffix == '.npy' and scale:
        scale = None
    feature = np.arange(24).reshape(2, 3, 4).astype(dtype)
    _write(tmp_path / f'a.1{suffix}', feature, scale)
    expert = CachedExpert(str(tmp_path), suffix=suffix, key='sample_id')
    one = PixelDataSample(metainfo=dict(sample_id='a.1', img_path='anywhere/x.png'))
    if dtype == 'int8' and scale is None:
        with pytest.raises(ValueError, match='scale'):
            expert([one])
        return
    [read] = expert([one])
    assert read.dtype == torch.float32
    assert np.array_equal(read.numpy(), feature.astype(np.float32) * (scale or 1))


def test_text_only_sample_needs_no_file(tmp_path):
    expert = CachedExpert(str(tmp_path), key='sample_id')
    text = PixelDataSample(metainfo=dict(sample_id='t', img_path=None, ori_shape=(0, 0)))
    memory = PixelDataSample(metainfo=dict(sample_id='m', img_path=None, ori_shape=(4, 6)))
    assert expert([text]) == [None]
    with pytest.raises(FileNotFoundError, match='m.npz'):
        expert([memory])


@pytest.mark.parametrize(
    'key, name',
    [
        ('sample_id', '../secret'),
        ('sample_id', '/etc/secret'),
        ('img_path', 'elsewhere/secret.png'),
    ],
)
def test_names_do_not_lead_out_of_the_cache(key, name, tmp_path):
    expert = CachedExpert(str(tmp_path), image_root='images', key=key)
    one = PixelDataSample(metainfo={'img_path': 'images/a.png', 'sample_id': 'a', key: name})
    with pytest.raises(ValueError, match='outside'):
        expert([one])


@pytest.mark.parametrize('wrong', [dict(suffix='.pkl'), dict(key='question'), dict()])
def test_wrong_arguments_are_named(wrong, tmp_path):
    with pytest.raises(ValueError, match=next(iter(wrong), 'image_root')):
        CachedExpert(str(tmp_path), **wrong)


class TestFingerprint:
    """index.json says whose features a folder holds."""

    @pytest.fixture
    def index(self, tmp_path):
        file = tmp_path / 'index.json'
        file.write_text('{"expert": "sam2", "weights_sha256": "ab", "size": 1024}')
        return file

    def open(self, index, **expected):
        return CachedExpert(str(index.parent), key='sample_id', fingerprint=expected)

    def test_match(self, index):
        assert self.open(index, expert='sam2', size=1024).missing == {}

    def test_mismatch_is_refused(self, index):
        with pytest.raises(ValueError, match="weights_sha256 is 'ab' instead of 'cd'"):
            self.open(index, expert='sam2', weights_sha256='cd')

    def test_absent_entry_is_refused(self, index):
        with pytest.raises(ValueError, match='channels is None'):
            self.open(index, channels=256)

    def test_absent_index_is_refused(self, index):
        index.unlink()
        with pytest.raises(ValueError, match='index.json'):
            self.open(index, expert='sam2')

    def test_truncated_index_is_refused(self, index):
        index.write_text(index.read_text()[:20])
        with pytest.raises(ValueError, match='index.json'):
            self.open(index, expert='sam2')


class TestDamagedCache:
    """Files that are missing, truncated or hold pickled code."""

    @pytest.fixture
    def image(self, tmp_path):
        return PixelDataSample(metainfo=dict(img_path=str(tmp_path / 'a.png')))

    @pytest.fixture
    def expert(self, tmp_path):
        return CachedExpert(str(tmp_path), str(tmp_path))

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='nowhere'):
            CachedExpert(str(tmp_path / 'nowhere'), str(tmp_path))

    def test_missing_file(self, expert, image, tmp_path):
        with pytest.raises(FileNotFoundError, match='a.npz'):
            expert([image])
        lenient = CachedExpert(str(tmp_path), str(tmp_path), allow_missing=True)
        assert lenient([image]) == [None] and sum(lenient.missing.values()) == 1

    def test_truncated_file(self, expert, image, tmp_path):
        np.savez(tmp_path / 'a.npz', feature=np.zeros((2, 30, 30)))
        content = (tmp_path / 'a.npz').read_bytes()
        (tmp_path / 'a.npz').write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match='a.npz'):
            expert([image])

    @pytest.mark.parametrize('suffix', ['.npz', '.npy', '.safetensors'])
    def test_a_wrong_byte_anywhere(self, image, suffix, tmp_path):
        """The libraries know a dozen errors for damaged files; a user sees one that names it."""
        file = tmp_path / f'a{suffix}'
        feature = np.random.default_rng(0).normal(size=(2, 3, 4))
        if suffix == '.npz':
            np.savez_compressed(file, feature=feature)
        else:
            _write(file, feature)
        content, refused = file.read_bytes(), 0
        expert = CachedExpert(str(tmp_path), str(tmp_path), suffix=suffix)
        for place, byte in enumerate(content):
            file.write_bytes(content[:place] + bytes([byte ^ 0xFF]) + content[place + 1 :])
            try:
                expert([image])
            except ConfigError as error:
                assert file.name in str(error)
                refused += 1
        assert refused > 10

    @pytest.mark.parametrize('feature', [np.zeros((1, 2, 3, 3)), np.full((2, 3, 3), np.nan)])
    def test_wrong_shape_or_values(self, expert, image, tmp_path, feature):
        np.savez(tmp_path / 'a.npz', feature=feature)
        with pytest.raises(ValueError, match='a.npz'):
            expert([image])

    def test_truncated_safetensors(self, image, tmp_path):
        _write(tmp_path / 'a.safetensors', np.zeros((2, 3, 4), np.float32))
        content = (tmp_path / 'a.safetensors').read_bytes()
        (tmp_path / 'a.safetensors').write_bytes(content[:-10])
        with pytest.raises(ValueError, match='a.safetensors'):
            CachedExpert(str(tmp_path), str(tmp_path), suffix='.safetensors')([image])

    def test_pickled_code_does_not_run(self, expert, image, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / 'executed'), 'w'))

        np.savez(tmp_path / 'a.npz', feature=np.array([Evil()], dtype=object))
        with pytest.raises(ValueError, match='pickle'):
            expert([image])
        assert not (tmp_path / 'executed').exists()
