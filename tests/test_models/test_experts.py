"""Vision experts: small random models of the real architectures, cached files, bad input."""

import numpy as np
import pytest
import torch

from pixelsail_mm.models.experts import CachedExpert, Mask2FormerExpert, SAM2Expert
from pixelsail_mm.structures import PixelDataSample

SWIN = dict(model_type='swin', image_size=64, embed_dim=8, depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2], window_size=4,
            out_features=['stage1', 'stage2', 'stage3', 'stage4'])
MASK2FORMER = dict(backbone_config=SWIN, feature_size=32, mask_feature_size=32, hidden_dim=32,
                   encoder_layers=1, decoder_layers=2, num_attention_heads=4,
                   encoder_feedforward_dim=32, dim_feedforward=32, num_queries=4)
HIERA = dict(model_type='sam2_hiera_det_model', hidden_size=8, num_attention_heads=1,
             blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
             num_attention_heads_per_stage=[1, 1, 2, 2], image_size=[128, 128],
             window_positional_embedding_background_size=[4, 4],
             window_size_per_stage=[4, 2, 4, 2], global_attention_blocks=[3])
SAM2 = dict(vision_config=dict(
    backbone_config=HIERA, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
    backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]),
    prompt_encoder_config=dict(hidden_size=32, image_size=128, patch_size=16,
                               mask_input_channels=4),
    mask_decoder_config=dict(hidden_size=32, mlp_dim=32, num_hidden_layers=1,
                             num_attention_heads=2, iou_head_hidden_dim=32))


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
    pixels = mask2former.processor(images=one.image.permute(1, 2, 0).numpy(),
                                   return_tensors='pt')['pixel_values']
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


@pytest.mark.parametrize('expert', [Mask2FormerExpert, SAM2Expert])
def test_missing_weights_are_named(expert, tmp_path):
    with pytest.raises(FileNotFoundError, match='no_weights'):
        expert(str(tmp_path / 'no_weights'))


def test_cached_features_follow_the_image_path(tmp_path):
    feature = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / 'expert' / 'train').mkdir(parents=True)
    np.savez(tmp_path / 'expert' / 'train' / '7.npz', feature=feature.astype(np.int8),
             scale=np.float32(0.5))
    expert = CachedExpert(str(tmp_path / 'expert'), str(tmp_path / 'images'))
    image = PixelDataSample(metainfo=dict(img_path=str(tmp_path / 'images/train/7.png')))
    text = PixelDataSample(metainfo=dict(img_path=None))
    read, nothing = expert([image, text])
    assert nothing is None and read.dtype == torch.float32
    assert np.array_equal(read.numpy(), feature * 0.5)


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
        (tmp_path / 'a.npz').write_bytes(content[:len(content) // 2])
        with pytest.raises(ValueError, match='a.npz'):
            expert([image])

    def test_pickled_code_does_not_run(self, expert, image, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / 'executed'), 'w'))

        np.savez(tmp_path / 'a.npz', feature=np.array([Evil()], dtype=object))
        with pytest.raises(ValueError, match='pickle'):
            expert([image])
        assert not (tmp_path / 'executed').exists()
