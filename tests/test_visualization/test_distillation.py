"""Pictures of both feature maps: equal features have equal colours."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from pixelsail_mm.checkpoints.checkpoint import save_weights
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config
from pixelsail_mm.visualization.distillation import (
    Comparison,
    SharedColours,
    live_experts,
    visualize_distillation,
)
from tests.test_models.test_experts.test_onnx_expert import pooling


def test_colours_are_the_principal_components():
    """Channel 0 varies most, channel 1 half as much, channel 2 not at all."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing='ij')
    feature = torch.stack([2 * rows, columns, torch.ones(20, 20)], dim=2)
    picture = SharedColours([feature])(feature)
    assert picture.dtype == np.uint8 and picture.shape == (20, 20, 3)
    red, green, blue = picture.transpose(2, 0, 1)
    assert len(np.unique(red[:, 0])) > 15 and len(np.unique(red[0])) == 1
    assert len(np.unique(green[0])) > 15 and len(np.unique(green[:, 0])) == 1
    assert red.min() == 0 and red.max() == 255 and np.ptp(green) == pytest.approx(128, abs=2)
    assert np.ptp(blue) == 0


def test_other_features_are_shown_in_the_colours_of_the_expert():
    theirs = torch.randn(8, 8, 5)
    colours = SharedColours([theirs])
    assert np.array_equal(colours(theirs.clone()), colours(theirs))
    shifted = colours(theirs + 100 * colours.basis[0])
    assert (shifted[..., 0] == 255).all()
    assert np.array_equal(shifted[..., 1:], colours(theirs)[..., 1:])


@pytest.mark.parametrize('channels', [1, 2])
def test_fewer_channels_than_colours(channels):
    feature = torch.randn(4, 4, channels)
    assert SharedColours([feature])(feature).shape == (4, 4, 3)


def test_scores_by_hand():
    theirs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    ours = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])
    scores = Comparison('x', 'neck', np.zeros((1, 2, 3), np.uint8), 'a', ours, theirs).scores()
    assert scores['cosine'] == pytest.approx((1 + 0) / 2)
    # Mean (0.5, 0.5): (1.5,-0.5) with (0.5,-0.5), and (0.5,-0.5) with (-0.5,0.5).
    assert scores['centred'] == pytest.approx((2 / 5**0.5 - 1) / 2, rel=1e-4)
    assert scores['mse'] == pytest.approx((1 + 0 + 1 + 1) / 4)
    same = Comparison('x', 'neck', None, 'a', theirs, theirs).scores()
    assert same == pytest.approx(dict(cosine=1, centred=1, mse=0))


def test_cache_gives_way_to_its_expert():
    cached = dict(type='CachedExpert', root='r', image_root='i')
    losses = live_experts(
        dict(distill=[dict(expert=dict(cached, of=dict(type='A'))), dict(expert=cached)])
    )['distill']
    assert [loss['expert'] for loss in losses] == [dict(type='A'), cached]
    with pytest.raises(ConfigError, match='nothing to compare'):
        live_experts(dict(distill=[]))


class TestPictures:
    """From a config and a checkpoint to files."""

    @pytest.fixture
    def trained(self, tmp_path):
        byte_tokenizer().save_pretrained(tmp_path / 'tok')
        expert = dict(type='OnnxExpert', model=pooling(tmp_path / 'a.onnx'), output='means')
        loss = dict(type='ExpertDistillLoss', expert_channels=3, expert=expert)
        model = tiny_model_config(
            str(tmp_path / 'tok'),
            distill=[
                dict(loss, name='fine', feature='neck'),
                dict(loss, name='coarse', feature='backbone'),
            ],
        )
        pipeline = [
            dict(type='LoadImage'),
            dict(type='LoadMasks'),
            dict(type='LoadVisualPrompts'),
            dict(type='ResizeToGrid', patch_size=8, max_size=32),
            dict(type='BuildConversation', tokenizer=str(tmp_path / 'tok'), generation=True),
            dict(type='PackPixelInputs'),
        ]
        (tmp_path / 'other').mkdir()
        for name, size in (('wide', (48, 32)), ('tall', (20, 60)), ('other/wide', (30, 30))):
            pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'{name}.png')
        (tmp_path / 'test.json').write_text(
            json.dumps(
                [
                    dict(image=f'{name}.png', caption='x')
                    for name in ('wide', 'wide', 'tall', 'other/wide')
                ]
            )
        )
        data = dict(
            type='ImageCaptionDataset',
            data_root=str(tmp_path),
            ann_file='test.json',
            test_mode=True,
            pipeline=pipeline,
        )
        state = MODELS.build(model).state_dict()
        save_weights(state, tmp_path / 'iter_1.safetensors')
        save_weights(
            {key: value for key, value in state.items() if 'distill' not in key},
            tmp_path / 'exported.safetensors',
        )
        return Config(dict(model=model, test_dataloader=[dict(dataset=data)])), tmp_path

    def test_a_picture_per_loss_and_image(self, trained):
        cfg, folder = trained
        scores = visualize_distillation(cfg, str(folder / 'iter_1.safetensors'), folder / 'out')
        files = sorted(
            path.relative_to(folder / 'out').as_posix() for path in (folder / 'out').rglob('*.png')
        )
        # Two images have one name; none takes the other's place.
        names = ['tall', 'wide', 'wide_2']
        assert files == [
            'coarse.png',
            *(f'coarse/{name}.png' for name in names),
            'fine.png',
            *(f'fine/{name}.png' for name in names),
        ]
        assert set(scores) == {'fine', 'coarse'} and set(scores['fine']) == set(names)
        both, one = (
            np.asarray(Image.open(folder / 'out' / name)) for name in ('fine.png', 'fine/wide.png')
        )
        assert both.shape[0] > one.shape[0] and both.shape[1] == one.shape[1]
        scores = visualize_distillation(cfg, str(folder / 'iter_1.safetensors'), folder / 'one', 1)
        assert list(scores['fine']) == ['wide']

    def test_mistakes(self, trained):
        cfg, folder = trained
        with pytest.raises(ConfigError, match='exported weights leave them out'):
            visualize_distillation(cfg, str(folder / 'exported.safetensors'), folder / 'out')
        with pytest.raises(ConfigError, match='no `train_dataloader`'):
            visualize_distillation(
                cfg, str(folder / 'iter_1.safetensors'), folder / 'out', split='train'
            )
        with pytest.raises(CheckpointError):
            visualize_distillation(cfg, str(folder / 'nowhere.pth'), folder / 'out')
