"""Training from a cache is training with the experts that made it, and with no others."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts import Mask2FormerExpert, SAM2Expert
from pixelsail_mm.models.experts.cache.build import Image as FeatureImage
from pixelsail_mm.models.experts.cache.build import Job, cache_features
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import byte_tokenizer, collate, make_sample, tiny_model_config
from tests.helpers.tiny_experts import MASK2FORMER, SAM2


class TestTrainingFromTheCache:
    """Two experts of the real architectures, live and cached, teach the same."""

    @pytest.fixture(scope='class')
    def images(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp('images')
        for i, (height, width) in enumerate([(40, 56), (64, 32)]):
            pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.png')
        return folder

    @pytest.fixture(scope='class')
    def experts(self, tmp_path_factory):
        """Folders of random weights as a user has downloaded them."""
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp('experts')
        experts = [Mask2FormerExpert(MASK2FORMER, size=64), SAM2Expert(SAM2, size=128)]
        for expert in experts:
            expert.model.save_pretrained(folder / type(expert).__name__)
            expert.processor.save_pretrained(folder / type(expert).__name__)
        return [
            dict(type='Mask2FormerExpert', model=str(folder / 'Mask2FormerExpert'), size=64),
            dict(type='SAM2Expert', model=str(folder / 'SAM2Expert'), size=128),
        ]

    @pytest.fixture(scope='class')
    def caches(self, images, experts, tmp_path_factory):
        folder = tmp_path_factory.mktemp('caches')
        files = [FeatureImage(path.name, str(path)) for path in sorted(images.iterdir())]
        for expert in experts:
            job = Job(expert, str(folder / expert['type']), str(images))
            assert cache_features(job, files).written == 2
        return [
            dict(
                type='CachedExpert',
                root=str(folder / expert['type']),
                image_root=str(images),
                of=expert,
            )
            for expert in experts
        ]

    def build(self, experts):
        return MODELS.build(
            tiny_model_config(
                byte_tokenizer(),
                distill=[
                    dict(
                        type='ExpertDistillLoss',
                        name=name,
                        feature=feature,
                        expert_channels=32,
                        distance='both',
                        expert=expert,
                    )
                    for name, feature, expert in zip('ab', ('neck', 'backbone'), experts)
                ],
            )
        )

    def losses(self, model, images):
        samples = [make_sample(model.tokens, (3, 4), num_segs=1, seed=i) for i in range(2)]
        for i, (_, sample) in enumerate(samples):
            sample.set_metainfo(dict(img_path=str(images / f'{i}.png')))
        text = make_sample(model.tokens, None, seed=2)
        text[1].set_metainfo(dict(img_path=None))
        losses = model(**model.data_preprocessor(collate([*samples, text])), mode='loss')
        losses['loss_distill_a'].backward(retain_graph=True)
        return losses, model.backbone.patch_embed.weight.grad

    def test_losses_and_gradients_are_those_of_the_live_experts(
        self, images, experts, caches, monkeypatch
    ):
        live = self.build(experts)
        expected, expected_grad = self.losses(live, images)
        for kind in (Mask2FormerExpert, SAM2Expert):  # their weights must not even be read
            monkeypatch.setattr(kind, '_pretrained', lambda *args: 1 / 0)
        cached = self.build(caches)
        cached.load_state_dict(live.state_dict())
        found, grad = self.losses(cached, images)
        assert expected['loss_distill_a'] > 0.01 and expected['loss_distill_b'] > 0.01
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=0, msg=key)
        torch.testing.assert_close(
            grad, expected_grad, rtol=1e-3, atol=1e-3 * expected_grad.abs().max().item()
        )

    def test_the_cache_of_the_other_expert_is_refused(self, experts, caches):
        with pytest.raises(ConfigError, match="expert is 'Mask2FormerExpert' instead of 'SAM2E"):
            MODELS.build(dict(caches[0], of=experts[1]))

    def test_the_cache_of_other_weights_is_refused(self, experts, caches, tmp_path):
        from safetensors.torch import load_file, save_file

        shutil.copytree(experts[1]['model'], tmp_path / 'tuned')
        weights = load_file(tmp_path / 'tuned/model.safetensors')
        weights['no_memory_embedding'] += 1e-3
        save_file(weights, tmp_path / 'tuned/model.safetensors', metadata=dict(format='pt'))
        tuned = dict(experts[1], model=str(tmp_path / 'tuned'))
        with pytest.raises(ConfigError, match='weights_sha256 is'):
            MODELS.build(dict(caches[1], of=tuned))
        with pytest.raises(ConfigError, match='weights_sha256 is'):
            cache_features(Job(tuned, caches[1]['root'], '/'), [])
        # What was only moved or copied is the same expert.
        shutil.copytree(experts[1]['model'], tmp_path / 'moved')
        MODELS.build(dict(caches[1], of=dict(experts[1], model=str(tmp_path / 'moved'))))

    def test_weights_of_another_machine_are_not_compared(self, experts, caches):
        MODELS.build(dict(caches[1], of=dict(experts[1], model='nobody/nothing-of-this-name')))
