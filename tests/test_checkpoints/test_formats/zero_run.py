"""Train tiny Pixel-SAILs for one step with DeepSpeed and save them; run with torchrun.

usage: zero_run.py FOLDER CASE...; a case is STAGE-(un)tied-PRECISION, e.g. 3-tied-bfloat16
"""

import contextlib
import sys

import deepspeed
import torch

from pixelsail_mm.checkpoints.checkpoint import save_weights
from pixelsail_mm.engine.strategies.common import init_gloo
from pixelsail_mm.engine.strategies.deepspeed import (
    adapt,
    skip_shared_memory_op,
    unhooked_bare_modules,
)
from pixelsail_mm.testing.tiny_models import collate, make_sample
from tests.helpers.checkpoint_cases import tiny_pixel_sail


def build(tied):
    """A model with frozen parts, in two parameter groups."""
    model = tiny_pixel_sail(tied).train()
    model.neck.requires_grad_(False)
    model.backbone.patch_embed.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        dict(params=[weight for weight in trained if weight.dim() > 1], weight_decay=0.05),
        dict(params=[weight for weight in trained if weight.dim() == 1], weight_decay=0.0),
    ]
    return model, groups


def run(folder, case):
    """Train and save ``folder/case`` (a checkpoint) and ``folder/case.safetensors``."""
    stage, tied, precision = case.split('-')
    model, groups = build(tied == 'tied')
    config = adapt(dict(zero_optimization=dict(stage=int(stage))), 1, 1, 0.0)
    config['bf16'] = dict(enabled=precision == 'bfloat16')
    with unhooked_bare_modules(model):
        engine = deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=config
        )[0]
    model.data_preprocessor.float()
    batch = model.data_preprocessor(collate([make_sample(model.tokens, (2, 3), num_segs=1)]))
    losses = engine(batch['inputs'], batch['data_samples'], mode='loss')
    engine.backward(sum(losses.values()))
    with torch.no_grad():
        engine.step()
    with contextlib.redirect_stdout(sys.stderr):
        engine.save_checkpoint(folder, tag=case)
    weights = (
        engine._zero3_consolidated_16bit_state_dict()
        if stage == '3'
        else engine.module_state_dict()
    )
    if torch.distributed.get_rank() == 0:
        save_weights(weights, f'{folder}/{case}.safetensors')


if __name__ == '__main__':
    init_gloo('pytorch')
    skip_shared_memory_op()
    for name in sys.argv[2:]:
        run(sys.argv[1], name)
    torch.distributed.barrier()  # a process that leaves early makes the other one abort at exit
    torch.distributed.destroy_process_group()
