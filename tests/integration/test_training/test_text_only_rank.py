"""Two processes of which one never sees an image, with the real model."""

import json

import pytest

from pixelsail_mm.checkpoints.checkpoint import load_state

FOLDER = 'tests/integration/test_training'
CONFIG = 'alternating_config'
STEPS = 4
# Without the threshold ZeRO-3 leaves small tensors whole, and a process that calls other modules
# than its neighbour would hang with large models only.
ZERO3 = dict(
    zero_allow_untested_optimizer=True,
    zero_force_ds_cpu_optimizer=False,
    zero_optimization=dict(
        stage=3,
        stage3_param_persistence_threshold=0,
        stage3_gather_16bit_weights_on_model_save=True,
    ),
)

pytestmark = pytest.mark.slow


def test_curves_agree_and_nothing_hangs(two_against_one, logged, tmp_path):
    """With real data and distillation; test_unequal_ranks.py has other strategies and models."""
    (tmp_path / 'zero3.json').write_text(json.dumps(ZERO3))
    one, two, _ = two_against_one(
        f'{FOLDER}/{CONFIG}.py',
        tmp_path / 'zero3.json',
        STEPS,
        ('loss', 'loss_mask', 'loss_dice', 'loss_lm', 'loss_distill_oracle'),
    )
    assert max(entry['loss_mask'] for entry in logged(two).values()) > 0
    exported = load_state(two / 'model.safetensors')['state_dict']
    assert exported.keys() == load_state(one / 'model.safetensors')['state_dict'].keys()


def test_validation_under_zero3_does_not_hang_or_disturb_training(
    run_tool, logged, mixed_world, tmp_path
):
    """Answers differ in length between the processes (3 samples for two)."""
    (tmp_path / 'zero3.json').write_text(json.dumps(ZERO3))
    curves = []
    for interval in (1, 100):
        work_dir = tmp_path / str(interval)
        status, output = run_tool(
            'bash',
            'tools/dist_train.sh',
            'configs/pixelsail/pixelsail_mini.py',
            2,
            '--work-dir',
            work_dir,
            '--deepspeed',
            tmp_path / 'zero3.json',
            '--cfg-options',
            'train_cfg.max_iters=2',
            f'train_cfg.val_interval={interval}',
            'train_dataloader.batch_size=1',
            'default_hooks.logger.interval=1',
            PIXELSAIL_DATA=str(mixed_world),
        )
        assert status == 0, output[-4000:]
        assert 'refseg/cIoU' in output
        curves.append([entry['loss'] for entry in logged(work_dir).values()])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
