"""Three experts teach one model at once; frozen whatever happens to the student."""

import json

import pytest
import torch

from pixelsail_mm.compat.transformers import image_processor_class
from pixelsail_mm.models.experts import Mask2FormerExpert, SAM2Expert
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.testing.tiny_models import byte_tokenizer, collate, make_sample, tiny_model_config
from tests.helpers.tiny_experts import MASK2FORMER, SAM2
from tests.test_models.test_experts.test_onnx_expert import pooling

LOSSES = ['loss_distill_m2f', 'loss_distill_sam2', 'loss_distill_onnx']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small student of three real architectures, one distance each."""
    torch.manual_seed(0)
    onnx = pooling(tmp_path_factory.mktemp('onnx') / 'a.onnx')
    loss = dict(type='ExpertDistillLoss', expert_channels=32)
    return MODELS.build(
        tiny_model_config(
            byte_tokenizer(),
            distill=[
                dict(
                    loss,
                    name='m2f',
                    feature='neck',
                    distance='mse',
                    expert=dict(type='Mask2FormerExpert', model=MASK2FORMER, size=64),
                ),
                dict(
                    loss,
                    name='sam2',
                    feature='backbone',
                    distance='cosine',
                    expert=dict(type='SAM2Expert', model=SAM2, size=128),
                ),
                dict(
                    loss,
                    name='onnx',
                    feature='neck',
                    distance='both',
                    expert_channels=3,
                    expert=dict(type='OnnxExpert', model=onnx, output='means'),
                ),
            ],
        )
    )


def batch(model):
    image = make_sample(model.tokens, (2, 3), num_segs=1)
    image[1].image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    text = make_sample(model.tokens, None, seed=1)
    return model.data_preprocessor(collate([image, text]))


def losses(model):
    return model(**batch(model), mode='loss')


def weights(model):
    return [expert.model.state_dict() for expert in (loss.expert for loss in model.distill[:2])]


def test_each_teaches_its_features_and_none_is_in_the_checkpoint(model):
    model.zero_grad()
    found = losses(model)
    assert all(found[name].item() > 0 for name in LOSSES)
    sum(found[name] for name in LOSSES).backward()
    for loss in model.distill:
        assert loss.proj.weight.grad.abs().sum() > 0
    kept = {key.split('.')[2] for key in model.state_dict() if key.startswith('distill')}
    assert kept == {'proj'}
    assert len([key for key, _ in model.named_parameters() if key.startswith('distill')]) == 6


def test_losses_are_those_of_each_expert_alone(model):
    """Teachers do not disturb each other."""
    torch.manual_seed(1)
    together = losses(model)
    kept = model.distill
    try:
        for loss, name in zip(kept, LOSSES):
            model.distill = torch.nn.ModuleList([loss])
            torch.manual_seed(1)
            torch.testing.assert_close(losses(model)[name], together[name])
    finally:
        model.distill = kept


@pytest.mark.parametrize(
    'change',
    [
        lambda model: model.train(),
        lambda model: model.requires_grad_(True),
        lambda model: model.bfloat16(),
        lambda model: model.half(),
    ],
)
def test_what_is_done_to_the_student_is_not_done_to_the_teachers(model, change):
    before = [{key: value.clone() for key, value in state.items()} for state in weights(model)]
    change(model)
    try:
        for loss in model.distill[:2]:
            teacher = loss.expert.model
            assert not teacher.training
            assert not any(p.requires_grad for p in teacher.parameters())
            assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    finally:
        model.float()
    for state, old in zip(weights(model), before):
        assert all(torch.equal(state[key], old[key]) for key in old)


def test_training_step_leaves_the_teachers_alone(model):
    before = [{key: value.clone() for key, value in state.items()} for state in weights(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(value for value in losses(model).values()).backward()
    optimizer.step()
    for state, old in zip(weights(model), before):
        assert all(torch.equal(state[key], old[key]) for key in old)


def test_student_in_bfloat16_under_autocast(model):
    with torch.autocast('cpu', torch.bfloat16):
        found = losses(model)
    assert all(found[name].dtype == torch.float32 and found[name].isfinite() for name in LOSSES)


@pytest.mark.parametrize(
    'expert, settings, size', [(Mask2FormerExpert, MASK2FORMER, 64), (SAM2Expert, SAM2, 128)]
)
class TestFolders:
    """Weights in a folder, as users have them."""

    @pytest.fixture
    def folder(self, expert, settings, size, tmp_path):
        built = expert(settings, size=size)
        built.model.save_pretrained(tmp_path / 'a')
        built.processor.save_pretrained(tmp_path / 'a')
        return tmp_path / 'a'

    def test_fingerprint_follows_weights_and_settings(self, expert, settings, size, folder):
        found = expert(str(folder), size=size).fingerprint()
        assert json.loads(json.dumps(found)) == found and len(found['weights_sha256']) == 64
        assert expert.fingerprint_of(model=str(folder), size=size) == found
        assert found['preprocessing']['image_mean'] and found['preprocessing']['size']
        assert expert.fingerprint_of(model=str(folder), size=2 * size) != found
        torch.manual_seed(1)
        other = expert(settings, size=size).fingerprint()
        torch.manual_seed(1)
        assert expert(settings, size=size).fingerprint() == other
        assert other['preprocessing'] == found['preprocessing']
        assert other['feature']['map'] == found['feature']['map']

    def test_settings_of_the_architecture_are_in_the_fingerprint(
        self, expert, settings, size, folder
    ):
        """The same weights behind another activation give other features."""
        one = PixelDataSample(metainfo=dict(sample_id='s'))
        one.image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        before = expert(str(folder), size=size)
        found = before.fingerprint()
        config = json.loads((folder / 'config.json').read_text())
        config.get('vision_config', config)['backbone_config']['hidden_act'] = 'relu'
        (folder / 'config.json').write_text(json.dumps(config))
        after = expert(str(folder), size=size)
        assert not torch.allclose(before([one])[0], after([one])[0])
        other = after.fingerprint()
        assert found['weights_sha256'] == other['weights_sha256'] and found != other

    def test_half_precision_files_are_run_in_float32(self, expert, settings, size, folder):
        from safetensors.torch import load_file, save_file

        file = folder / 'model.safetensors'
        save_file(
            {key: value.half() for key, value in load_file(file).items()},
            file,
            metadata=dict(format='pt'),
        )
        loaded = expert(str(folder), size=size)
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}

    def test_truncated_weights(self, expert, settings, size, folder):
        file = folder / 'model.safetensors'
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match='damaged'):
            expert(str(folder), size=size)

    def test_weights_of_another_expert(self, expert, settings, size, folder):
        other = SAM2Expert if expert is Mask2FormerExpert else Mask2FormerExpert
        with pytest.raises(ValueError, match='distill.expert.model: .*a'):
            other(str(folder), size=size)


@pytest.mark.parametrize(
    'expert, size, image, expected',
    [
        # Shorter side to 800 unless the longer one would exceed 1333, then up to multiples of 32.
        (Mask2FormerExpert, 800, (480, 640), (800, 1088)),
        (Mask2FormerExpert, 800, (1200, 300), (1344, 352)),
        (SAM2Expert, 1024, (480, 640), (1024, 1024)),
    ],
)
def test_sizes_of_the_official_processors(expert, size, image, expected):
    options = expert._processor_options(dict(size=size))
    processor = image_processor_class(expert.processor_class)(**options)
    pixels = processor(
        images=torch.zeros(3, *image, dtype=torch.uint8),
        return_tensors='pt',
        input_data_format='channels_first',
    )['pixel_values']
    assert pixels.shape == (1, 3, *expected)


def test_unknown_precision_is_named():
    with pytest.raises(ValueError, match='dtype'):
        SAM2Expert(SAM2, size=128, dtype='int8')
