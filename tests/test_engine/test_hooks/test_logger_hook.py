"""Figures that cannot be written do not end a training."""

import os
from itertools import count
from pathlib import Path

import pytest

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import build_runner

CONFIG = Path(__file__).parents[1] / 'toy_config.py'
numbers = count()


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full, a full disk of Linux')
def test_a_full_disk(tmp_path):
    cfg = read_config(str(CONFIG), ['train_cfg.max_iters=3'])
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f'logs{next(numbers)}'
    cfg.launcher = 'none'
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    runner = build_runner(cfg)
    [backend] = runner.visualizer._vis_backends.values()
    backend._init_env()
    Path(backend._scalar_save_file).symlink_to('/dev/full')
    runner.train()
    [log] = Path(runner.log_dir).glob('*.log')
    text = log.read_text()
    assert runner.iter == 3 and (tmp_path / 'model.safetensors').exists()
    assert text.count('are not written to') == 1 and 'No space left on device' in text
    assert all(f'Iter(train) [{i}/3]' in text for i in (1, 2, 3))
