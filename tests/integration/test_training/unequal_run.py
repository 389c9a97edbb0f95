"""Train several small models in the processes of one group, one after the other.

``unequal_run.py SETTINGS.json``, in each process of a launcher. The settings hold ``tokenizer`` and
``work_dir`` (folders) and ``runs``: a list of ``name``, ``deepspeed``, ``heads``, ``steps`` (see
``UnequalBatches``), ``accumulation`` and ``hook`` (arguments of the hook that compares).
"""

import json
import sys
import time
from copy import deepcopy
from pathlib import Path

from mmengine.dist import get_rank

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.launch import _close_process_group
from pixelsail_mm.engine.runner_factory import build_runner
from pixelsail_mm.testing.tiny_models import TINY_EVE
from tests.test_engine.unequal_cases import plan
from tests.test_engine.unequal_components import AgainstOneProcessHook

CONFIG = Path(__file__).with_name('unequal_config.py')
#: What is beside the mask head; with ``eve`` it is another backbone.
PARTS = dict(
    mask=dict(),
    point=dict(
        heads=dict(point=dict(type='PointHead')),
        neck=dict(_delete_=True, type='WeighedChannels'),
        distill=[
            dict(
                type='ExpertDistillLoss',
                expert=dict(type='SomeMapsExpert'),
                feature='neck',
                expert_channels=4,
                name='maps',
            )
        ],
    ),
    eve=dict(
        backbone=dict(_delete_=True, **TINY_EVE['backbone']),
        prompt_injector=TINY_EVE['prompt_injector'],
    ),
    box=dict(heads=dict(box=dict(type='SegTokenBoxHead', embed_channels=16))),
)


def train(run, tokenizer, work_dir):
    """Train one model; give the number of cases and seconds."""
    cfg = read_config(str(CONFIG))
    cfg.merge_from_dict(dict(model=deepcopy(PARTS[run['heads']])))
    cfg.model.tokenizer = cfg.train_dataloader.dataset.tokenizer = tokenizer
    cfg.train_dataloader.dataset.steps = run['steps']
    if run['heads'] == 'eve':
        cfg.train_dataloader.dataset.image_layout = 'rows'
    steps = len(plan(**run['steps']))
    cfg.train_cfg.max_iters = steps - steps % run['accumulation']  # whole windows
    cfg.work_dir, cfg.experiment_name = f'{work_dir}/{run["name"]}', run['name']
    cfg.deepspeed, cfg.launcher = run['deepspeed'], 'pytorch'
    cfg.optim_wrapper.accumulative_counts = run['accumulation']
    cfg.custom_hooks = [dict(type='AgainstOneProcessHook', **run['hook'])]
    start = time.monotonic()
    runner = build_runner(cfg)
    [hook] = [hook for hook in runner.hooks if isinstance(hook, AgainstOneProcessHook)]
    runner.train()
    return dict(
        run=run['name'],
        cases=hook.cases,
        steps=runner.max_iters,
        seconds=round(time.monotonic() - start),
    )


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    for run in settings['runs']:
        done = train(run, settings['tokenizer'], settings['work_dir'])
        if get_rank() == 0:
            print('done ' + json.dumps(done), flush=True)
    _close_process_group()


if __name__ == '__main__':
    main()
