"""RADIOExpert on a stand-in: a folder with remote code of RADIO's documented interface.

The public weights cannot be downloaded here; ``radio_stand_in.py``, written below, gives what
RADIO's documentation says: images in 0..1 -> (summary, spatial_features (B,T,D)).
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts import RADIOExpert
from pixelsail_mm.structures import PixelDataSample

CODE = """
from collections import namedtuple
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

RadioOutput = namedtuple('RadioOutput', ['summary', 'features'])


class StandInConfig(PretrainedConfig):

    def __init__(self, patch_size=16, adaptors=False, broken=False, **kwargs):
        super().__init__(**kwargs)
        self.patch_size, self.adaptors, self.broken = patch_size, adaptors, broken


class StandInModel(PreTrainedModel):
    config_class = StandInConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Conv2d(3, 8, config.patch_size, config.patch_size)
        self.seen = None
        self.post_init()

    def forward(self, x):
        self.seen = x
        features = self.embed(x).flatten(2).transpose(1, 2)
        if self.config.broken:
            features = features[:, 1:]
        output = RadioOutput(features.mean(1), features)
        return dict(backbone=output, siglip=output) if self.config.adaptors else output
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Build the stand-in's folder; code that transformers copies goes to ``tmp_path``."""
    monkeypatch.setattr(
        'transformers.dynamic_module_utils.HF_MODULES_CACHE', str(tmp_path / 'modules')
    )

    def build(code=CODE, **config):
        path = tmp_path / 'radio_stand_in'
        path.mkdir()
        (path / 'radio_stand_in.py').write_text(code)
        (path / 'config.json').write_text(
            json.dumps(
                dict(
                    config,
                    auto_map=dict(
                        AutoConfig='radio_stand_in.StandInConfig',
                        AutoModel='radio_stand_in.StandInModel',
                    ),
                )
            )
        )
        (path / 'preprocessor_config.json').write_text(
            json.dumps(
                dict(
                    crop_size=dict(height=64, width=64),
                    do_center_crop=False,
                    do_convert_rgb=True,
                    do_normalize=False,
                    do_rescale=True,
                    do_resize=False,
                    resample=3,
                    image_processor_type='CLIPImageProcessor',
                    size=dict(shortest_edge=64),
                )
            )
        )
        torch.manual_seed(0)
        save_file(
            {'embed.weight': torch.randn(8, 3, 16, 16), 'embed.bias': torch.zeros(8)},
            path / 'model.safetensors',
            metadata=dict(format='pt'),
        )
        return str(path)

    return build


def sample(height, width):
    result = PixelDataSample(metainfo=dict(sample_id='s'))
    result.image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return result


@pytest.mark.parametrize('adaptors', [False, True])
def test_spatial_features_in_rows_and_columns(folder, adaptors):
    expert = RADIOExpert(folder(adaptors=adaptors), size=64, trust_remote_code=True)
    one = sample(64, 96)
    [read] = expert([one])
    weight = expert.model.embed.weight
    expected = torch.nn.functional.conv2d(one.image[None] / 255, weight, stride=16)[0]
    assert read.dtype == torch.float32 and not read.requires_grad and not expert.model.training
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-4)
    assert 0 <= expert.model.seen.min() and expert.model.seen.max() <= 1


@pytest.mark.parametrize(
    'size, shape', [((100, 170), (4, 7)), ((30, 20), (6, 4)), ((5, 400), (2, 128))]
)
def test_whole_patches_at_about_the_aspect_ratio(folder, size, shape):
    """Shorter side at 64; of a very long image, the longer one at 2048."""
    expert = RADIOExpert(folder(), size=64, trust_remote_code=True)
    assert expert([sample(*size)])[0].shape == (8, *shape)


def test_code_does_not_run_unless_allowed(folder, tmp_path):
    path = folder(f'from pathlib import Path\nPath({str(tmp_path)!r}, "executed").touch()\n{CODE}')
    with pytest.raises(ConfigError, match='trust_remote_code=True.*OnnxExpert'):
        RADIOExpert(path)
    assert not (tmp_path / 'executed').exists()
    RADIOExpert(path, trust_remote_code=True)
    assert (tmp_path / 'executed').exists()


def test_package_that_the_code_needs_is_named(folder):
    with pytest.raises(ConfigError, match='further packages.*no_such_package'):
        RADIOExpert(folder(f'import no_such_package\n{CODE}'), trust_remote_code=True)


def test_other_output_is_named(folder):
    with pytest.raises(ConfigError, match=r'gives \(1, 15, 8\) for an image of 4x4 patches'):
        RADIOExpert(folder(broken=True), size=64, trust_remote_code=True)([sample(64, 64)])


def test_missing_folder_and_random_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match='no_weights'):
        RADIOExpert(str(tmp_path / 'no_weights'))
    with pytest.raises(ConfigError, match='no class for random weights'):
        RADIOExpert(dict(patch_size=16))


def test_fingerprint_is_told_without_the_weights_in_memory(folder):
    path = folder()
    expert = RADIOExpert(path, size=64, trust_remote_code=True)
    found = expert.fingerprint()
    assert json.loads(json.dumps(found)) == found and len(found['weights_sha256']) == 64
    assert found['preprocessing']['size']['shortest_edge'] == 64
    told = RADIOExpert.fingerprint_of(model=path, size=64, trust_remote_code=True)
    assert told == found
    assert RADIOExpert.fingerprint_of(model=path) != found
