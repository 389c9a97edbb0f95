"""Every config is built, with its sizes shrunk and its downloads replaced by random weights."""

from pathlib import Path

import pytest
import torch

from pixelsail_mm.config import read_config
from pixelsail_mm.registry import MODELS, TRANSFORMS
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, collate, make_sample

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for folder in ('pixelsail', 'sail') for path in (ROOT / 'configs' / folder).glob('*.py')
)
# Part of a hub name or folder -> family of its architecture, for bases whose files are not here.
FAMILIES = {'qwen3': 'qwen3', 'qwen2': 'qwen2', 'smollm2': 'llama'}


class NoExpert:
    """Stands for the frozen experts, whose weights are not here: features of zeros."""

    def __init__(self, channels):
        self.channels = channels

    def __call__(self, data_samples):
        return [
            torch.zeros(self.channels, 4, 4) if sample.get('img_path') else None
            for sample in data_samples
        ]


def family_of(llm):
    """``model_type`` of a config's ``backbone.llm``."""
    if not isinstance(llm, str):
        return llm['model_type']
    return next(family for part, family in FAMILIES.items() if part in llm.lower())


def shrunk_model(cfg):
    """The config's model: its parts and switches, two narrow layers, no file and no network."""
    model = cfg.model.to_dict()
    model['tokenizer'] = byte_tokenizer()
    family = family_of(model['backbone']['llm'])
    model['backbone'].update(llm=TINY_LLM | dict(model_type=family, head_dim=8), dtype=None)
    model['neck']['max_channels'] = 16
    if model['mask_head'].get('num_points'):
        model['mask_head']['num_points'] = 32
    for loss in model['distill']:
        loss['expert'] = NoExpert(loss.setdefault('expert_channels', 256))
    return model


def test_there_are_configs():
    assert {'pixelsail_tiny', 'pixelsail_mini', 'pixelsail_0.5b', 'pixelsail_3b'} <= {
        path.stem for path in CONFIGS
    }


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_model_trains_one_step(path):
    model = MODELS.build(shrunk_model(read_config(path))).train()
    patch = model.backbone.patch_size
    image = make_sample(
        model.tokens,
        (2, 3),
        2,
        (4,),
        patch_size=patch,
        image_layout=model.data_preprocessor.image_layout,
    )
    text = make_sample(model.tokens, None, seed=1)
    image[1].set_metainfo(dict(img_path='a.png'))
    text[1].set_metainfo(dict(img_path=None))
    losses = model(**model.data_preprocessor(collate([image, text])), mode='loss')
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_pipelines_build(path):
    cfg = read_config(path)
    for name in ('train_pipeline', 'test_pipeline'):
        for stage in cfg[name]:
            settings = stage.to_dict()
            if 'tokenizer' in settings:
                settings['tokenizer'] = byte_tokenizer()
            assert TRANSFORMS.build(settings) is not None
        assert cfg[name][-2].type == 'BuildConversation'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_patch_size_agrees_with_the_pipeline(path):
    cfg = read_config(path)
    grids = [
        stage.patch_size
        for name in ('train_pipeline', 'test_pipeline')
        for stage in cfg[name]
        if stage.type == 'ResizeToGrid'
    ]
    assert set(grids) == {cfg.model.backbone.patch_size}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_image_layout_agrees_with_the_pipeline(path):
    cfg = read_config(path)
    layouts = {
        stage.get('image_layout', 'block')
        for name in ('train_pipeline', 'test_pipeline')
        for stage in cfg[name]
        if stage.type == 'BuildConversation'
    }
    assert layouts == {getattr(MODELS.get(cfg.model.backbone.type), 'image_layout', 'block')}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_loaders_use_the_pipelines_that_are_shown(path):
    """A config that changes a pipeline changes it everywhere."""
    cfg = read_config(path)
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    for name in ('val_dataloader', 'test_dataloader'):
        for loader in cfg.get(name) or []:
            assert loader.dataset.pipeline == cfg.test_pipeline


def test_sizes_of_the_eve_variant():
    """Four blocks of upsampling from stride 32 to 2, no projection of prompts, CLIP's pixels."""
    model = MODELS.build(shrunk_model(read_config(ROOT / 'configs/pixelsail/pixelsail_7b_eve.py')))
    assert len(model.neck.blocks) == 4 and model.mask_head.embed_channels == 256
    assert model.prompt_injector.proj is None and model.causal_images
    # OpenAI CLIP's 0.48145466, 0.26862954 of 255 in the red channel.
    assert model.data_preprocessor.mean[0, 0, 0].item() == pytest.approx(0.48145466 * 255)
    assert model.data_preprocessor.std[0, 0, 0].item() == pytest.approx(0.26862954 * 255)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_opens_with_the_command_that_runs_it(path):
    head = path.read_text().split('_base_')[0]
    assert 'tools/train.py' in head or 'tools/dist_train.sh' in head
    assert path.name in head


def test_experts_of_the_recipe():
    cfg = read_config(ROOT / 'configs/pixelsail/pixelsail_0.5b.py')
    kinds = {loss.expert.type: (loss.feature, loss.loss_weight) for loss in cfg.model.distill}
    assert kinds == {'Mask2FormerExpert': ('neck', 0.5), 'SAM2Expert': ('backbone', 0.5)}
    assert cfg.optim_wrapper.optimizer.lr == 4e-5
    assert cfg.optim_wrapper.accumulative_counts == 8
