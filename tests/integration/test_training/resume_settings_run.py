"""Train the toy with every strategy, then resume with the same, other and impossible settings.

usage: resume_settings_run.py FOLDER; writes ``FOLDER/results.json``: run -> strategy -> the curves
from the first iteration of that run on, what was logged of the settings, and the error.
"""

import json
import sys
from pathlib import Path

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import build_runner
from pixelsail_mm.errors import CheckpointError, ConfigError

STRATEGIES = (None, 'zero1', 'zero2', 'zero3')
OTHER = [
    'optim_wrapper.optimizer.lr=0.05',
    'optim_wrapper.optimizer.weight_decay=0.2',
    'optim_wrapper.clip_grad.max_norm=0.3',
    'train_cfg.max_iters=6',
]
#: Run -> (strategy that it resumes, or the same one; options).
RUNS = {
    'saved': (False, []),
    'same': (True, []),
    'other': (True, OTHER),
    'fresh': (False, OTHER),
    'from_plain': (None, []),
    'from_zero1': ('zero1', []),
    'from_zero2': ('zero2', []),
}
SAVED_AT = 2


def run(folder: Path, name: str, strategy: str) -> dict:
    """Train; give what became of it."""
    source, options = RUNS[name]
    cfg = read_config(
        'tests/test_engine/toy_config.py',
        ['train_cfg.max_iters=4', 'default_hooks.checkpoint.max_keep_ckpts=-1', *options],
    )
    cfg.work_dir = str(folder / name / str(strategy))
    cfg.experiment_name, cfg.launcher, cfg.deepspeed = f'{name}-{strategy}', 'none', strategy
    if source is not False:
        source = strategy if source is True else source
        cfg.resume = str(folder / 'saved' / str(source) / f'iter_{SAVED_AT}.pth')
    try:
        runner = build_runner(cfg)
        if strategy:
            # MMEngine registers DeepSpeed's optimizers with every strategy; twice is an error.
            from mmengine._strategy import deepspeed

            deepspeed.register_deepspeed_optimizers = lambda: None
        runner.train()
    except (ConfigError, CheckpointError) as error:
        return dict(error=str(error))
    done = 0 if source is False else SAVED_AT
    curves = {
        key: [
            float(value) for value in runner.message_hub.get_scalar(f'train/{key}').data[0][done:]
        ]
        for key in ('loss', 'grad_norm', 'lr')
    }
    (log,) = Path(runner.log_dir).glob('*.log')
    return dict(curves, log=log.read_text().partition('training settings: ')[2][:4000])


if __name__ == '__main__':
    place = Path(sys.argv[1])
    found = {
        name: {str(strategy): run(place, name, strategy) for strategy in STRATEGIES}
        for name in RUNS
    }
    (place / 'results.json').write_text(json.dumps(found))
