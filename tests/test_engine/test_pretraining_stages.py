"""The stages of pre-training hand their weights on: eyes first, then the whole transformer."""

import pytest
import torch
from mmengine import Config
from mmengine.hooks import Hook

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import build_runner
from pixelsail_mm.registry import TRANSFORMS
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer

LLM = 'backbone.llm.'
EYES = 'backbone.patch_embed.weight'


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """A tiny text-only Llama in a folder, a small ShapesWorld, and room for work directories."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pixelsail_mm.worlds.shapes_world import make_shapes_world

    folder = tmp_path_factory.mktemp('stages')
    make_shapes_world(str(folder / 'world'), 'mini', 0, dict(train=8, val=3, test=2))
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**TINY_LLM | dict(model_type='llama', vocab_size=len(tokenizer)))
    ).save_pretrained(folder / 'base')
    tokenizer.save_pretrained(folder / 'base')
    return folder


def train(places, monkeypatch, name, **options):
    """Two steps of a config of ``configs/sail``; the weights before and after."""
    monkeypatch.setenv('PIXELSAIL_BASE', str(places / 'base'))
    monkeypatch.setenv('PIXELSAIL_DATA', str(places / 'world'))
    cfg = read_config(f'configs/sail/{name}.py', ['train_cfg.max_iters=2'])
    cfg.work_dir, cfg.experiment_name, cfg.launcher = str(places / name), name, 'none'
    cfg.param_scheduler = []
    cfg.update(options)
    runner = build_runner(cfg)
    before = {}
    runner.register_hook(Snapshot(before), priority='LOWEST')
    runner.train()
    return before, runner.model.state_dict()


class Snapshot(Hook):
    """Keeps the weights that training starts from."""

    def __init__(self, kept):
        self.kept = kept

    def before_train(self, runner):
        state = runner.model.state_dict()
        self.kept.update({key: value.clone() for key, value in state.items()})


def moved(before, after):
    """Names of the weights that training changed."""
    return {key for key, value in after.items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize('stage', [1, 2, 3])
def test_the_largest_pictures_fit_and_are_as_large_for_answers(repo_root, stage):
    cfg = Config.fromfile(repo_root / f'configs/sail/sail_0.5b_stage{stage}.py')
    grids = []
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_pipeline):
        stages = {one.type: one for one in pipeline}
        rows, columns = TRANSFORMS.build(stages['ResizeToGrid']).grid(2000, 2000)
        assert rows * columns + 500 < stages['BuildConversation'].max_length
        grids.append((rows, columns))
    assert grids == [(32, 32) if stage < 3 else (64, 64)] * 2


def test_stages_follow_each_other(places, monkeypatch, repo_root):
    monkeypatch.chdir(repo_root)
    before, after = train(places, monkeypatch, 'sail_smollm2_135m_stage1')
    assert moved(before, after) == {EYES}

    first = places / 'sail_smollm2_135m_stage1' / 'model.safetensors'
    before, last = train(places, monkeypatch, 'sail_smollm2_135m_stage2', load_from=str(first))
    assert torch.equal(before[EYES], after[EYES])
    changed = moved(before, last)
    assert EYES in changed and {key for key in last if key.startswith(f'{LLM}model.layers.')} <= (
        changed
    )
    assert all(key.startswith('backbone.') for key in changed)

    exported = load_state(places / 'sail_smollm2_135m_stage2' / 'model.safetensors')['state_dict']
    assert exported.keys() == last.keys()
    assert all(torch.equal(exported[key], value) for key, value in last.items())
