"""The projections onto the experts survive a resume, but not an export."""

from pathlib import Path

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import build_runner

CONFIG = Path(__file__).with_name('toy_config.py')
HEADS = {'distill.0.weight', 'distill.0.bias'}


def runner(work_dir, name, iterations, **options):
    """The toy, whose ``distill`` is a trained linear layer."""
    cfg = read_config(str(CONFIG), [f'train_cfg.max_iters={iterations}'])
    cfg.work_dir, cfg.experiment_name, cfg.launcher = str(work_dir), name, 'none'
    cfg.param_scheduler = []
    cfg.update(options)
    return build_runner(cfg)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Work directory of four iterations of training."""
    path = tmp_path_factory.mktemp('heads')
    runner(path, 'heads', 4).train()
    return path


def test_checkpoint_has_them_and_export_has_not(folder):
    trained = load_state(folder / 'iter_4.pth')['state_dict']
    exported = load_state(folder / 'model.safetensors')['state_dict']
    assert set(trained) - set(exported) == HEADS
    assert all(torch.equal(exported[key], trained[key]) for key in exported)


def test_resume_restores_them_with_their_optimizer_state(folder):
    """Two iterations more give the heads that six in one go give."""
    whole = runner(folder.parent / 'whole', 'whole', 6)
    whole.train()
    resumed = runner(folder, 'resumed', 6, resume=str(folder / 'iter_4.pth'))
    resumed.train()
    before = load_state(folder / 'iter_4.pth')['state_dict']
    for key in HEADS:
        assert torch.equal(resumed.model.state_dict()[key], whole.model.state_dict()[key])
        assert not torch.equal(resumed.model.state_dict()[key], before[key])


def test_training_goes_on_from_an_export_with_new_heads(folder):
    """``load_from``: everything but the heads is there, and that is no error."""
    cfg_runner = runner(
        folder.parent / 'next', 'next', 1, load_from=str(folder / 'model.safetensors')
    )
    cfg_runner.train()
    assert HEADS <= set(cfg_runner.model.state_dict())
