"""Train tiny models with LoRA and DeepSpeed, resume them, try what must fail; run with torchrun.

usage: lora_resume_run.py FOLDER BASE CASE...; a case is zeroN or zeroN-qlora. ``FOLDER/CASE/whole``
is trained from the checkpoint BASE, ``FOLDER/CASE/resumed`` from its first checkpoint, without
BASE. Why stage 1 refused adapters of another rank stands in ``FOLDER/CASE/refused.txt``.
"""

import sys
from pathlib import Path

import torch

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.runner_factory import build_runner
from pixelsail_mm.errors import CheckpointError

STEPS, SAVED = 2, 1
MODEL = ['model.backbone.llm.tie_word_embeddings=True', 'model.backbone.llm.num_hidden_layers=1']
# 64 weights share a scale in 4-bit: the layers of this config are whole blocks.
FOUR_BIT = [
    'model.backbone.quantization.type=BitsAndBytesConfig',
    'model.backbone.quantization.load_in_4bit=True',
    'model.backbone.quantization.bnb_4bit_quant_type=nf4',
    'model.backbone.quantization.bnb_4bit_compute_dtype=float32',
]


def runner_of(work_dir: Path, case: str, *options: str):
    """A runner of the LoRA config, with changes."""
    stage, _, quantised = case.partition('-')
    cfg = read_config(
        'tests/integration/test_training/lora_config.py',
        [
            *MODEL,
            'optim_wrapper.optimizer.lr=1e-3',
            f'train_cfg.max_iters={STEPS}',
            f'default_hooks.checkpoint.interval={SAVED}',
            *(FOUR_BIT if quantised else []),
            *options,
        ],
    )
    cfg.launcher, cfg.deepspeed, cfg.work_dir = 'pytorch', stage, str(work_dir)
    cfg.experiment_name = f'{case}-{work_dir.name}'  # MMEngine takes equal names for one run
    return build_runner(cfg)


def run(folder: Path, base: str, case: str) -> None:
    """All trainings of one case."""
    runner_of(folder / 'whole', case, f'load_from={base}').train()
    resume = f'resume={folder}/whole/iter_{SAVED}.pth'
    runner_of(folder / 'resumed', case, resume).train()
    if case != 'zero1':
        return
    try:
        runner_of(folder / 'refused', case, resume, 'model.backbone.lora.r=8').train()
    except CheckpointError as error:
        if torch.distributed.get_rank() == 0:
            (folder / 'refused.txt').write_text(str(error))


if __name__ == '__main__':
    for name in sys.argv[3:]:
        run(Path(sys.argv[1]) / name, sys.argv[2], name)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
