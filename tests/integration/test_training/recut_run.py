"""Resume ZeRO checkpoints with other stages and numbers of processes.

Usage: recut_run.py FOLDER LAUNCHER CASE...; a case is NAME:STAGE or NAME:STAGE:SAVED. It trains,
or resumes from FOLDER/SAVED/iter_3.pth, which it writes again as FOLDER/NAME/iter_3.pth; then it
takes two steps more and writes FOLDER/NAME/iter_5.pth.
"""

import sys
from pathlib import Path

import torch
from mmengine._strategy import deepspeed as mmengine_deepspeed
from mmengine.model import BaseModel
from torch import nn

from pixelsail_mm.benchmarks.saving import build_strategy


class Odd(BaseModel):
    """Weights whose sizes nothing divides, one of them frozen, tied ones, and buffers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.frozen = nn.Linear(5, 3)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 11)
        self.tied = nn.Linear(3, 11, bias=False)
        self.tied.weight = self.last.weight

    def forward(self, inputs, data_samples=None, mode='loss'):
        states = self.norm(self.frozen(self.first(inputs).tanh()))
        return dict(loss=(self.last(states) + self.tied(states)).square().mean())


def steps(strategy, first, last):
    """The same batches in all processes, so that their number does not matter."""
    for number in range(first, last):
        batch = torch.randn(6, 7, generator=torch.Generator().manual_seed(number))
        strategy.model.train_step(dict(inputs=batch), strategy.optim_wrapper)


def save(strategy, folder, iteration):
    extra = dict(meta=dict(iter=iteration, epoch=0), message_hub={})
    strategy.save_checkpoint(str(folder / f'iter_{iteration}.pth'), extra_ckpt=extra)


def main():
    torch.set_num_threads(1)
    root, launcher = Path(sys.argv[1]), sys.argv[2]
    for number, case in enumerate(sys.argv[3:]):
        name, stage, *saved = case.split(':')
        torch.manual_seed(number)
        strategy = build_strategy(Odd(), f'zero{stage}', launcher, root / name)
        if saved:
            resumed = strategy.resume(
                str(root / saved[0] / 'iter_3.pth'), resume_param_scheduler=False
            )
            assert resumed['meta']['iter'] == 3
            assert strategy.model.global_steps == 3
        else:
            steps(strategy, 0, 3)
        save(strategy, root / name, 3)
        steps(strategy, 3, 5)
        save(strategy, root / name, 5)
        # MMEngine's strategy registers DeepSpeed's optimizers each time; twice is an error.
        mmengine_deepspeed.register_deepspeed_optimizers = lambda: None


if __name__ == '__main__':
    main()
