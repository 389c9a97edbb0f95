"""Two processes of which one never sees an image, with the real model."""

import json
import sys

import pytest

from pixelsail_mm.engine.checkpoint import load_state

FOLDER = 'tests/test_engine'
CONFIG = 'alternating_config'
STEPS = 4
# Without the threshold ZeRO-3 leaves small tensors whole, and a process that calls other modules
# than its neighbour would hang with large models only.
ZERO3 = dict(
    zero_allow_untested_optimizer=True, zero_force_ds_cpu_optimizer=False,
    zero_optimization=dict(stage=3, stage3_param_persistence_threshold=0,
                           stage3_gather_16bit_weights_on_model_save=True))

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A small ShapesWorld with a file of text-only conversations."""
    from pixelsail_mm.datasets.shapes_world import make_shapes_world
    folder = tmp_path_factory.mktemp('shapes') / 'world'
    make_shapes_world(str(folder), 'mini', 0, dict(train=8, val=3, test=2))
    turns = [{'from': 'human', 'value': 'What is the red star?'},
             {'from': 'gpt', 'value': 'the red star'}]
    (folder / 'text_only.json').write_text(json.dumps(
        [dict(id=index, conversations=turns) for index in range(8)]))
    return folder


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    """Folder of the runs of one process, made by the first test of each config."""
    return tmp_path_factory.mktemp('single')


# With EVE's layers the process without an image calls its visual weights with no token at all.
@pytest.mark.parametrize(('config', 'stage'), [
    (CONFIG, 'zero2'), (CONFIG, 'zero3'), ('alternating_eve_config', 'zero3')])
def test_curves_agree_and_nothing_hangs(run_tool, logged, data, single, tmp_path, config, stage):
    shared = ['optim_wrapper.optimizer.lr=1e-3']
    single, config = single / config, f'{FOLDER}/{config}.py'
    if not single.exists():
        status, output = run_tool(
            sys.executable, 'tools/train.py', config, '--work-dir', single, '--cfg-options',
            *shared, f'train_cfg.max_iters={2 * STEPS}', 'default_hooks.logger.interval=2',
            'optim_wrapper.accumulative_counts=2', PIXELSAIL_DATA=str(data))
        assert status == 0, output[-4000:]
    (tmp_path / 'zero3.json').write_text(json.dumps(ZERO3))
    zero = tmp_path / 'zero3.json' if stage == 'zero3' else stage
    status, output = run_tool(
        'bash', 'tools/dist_train.sh', config, 2, '--work-dir', tmp_path / 'run', '--deepspeed',
        zero, '--cfg-options', *shared, f'train_cfg.max_iters={STEPS}',
        PIXELSAIL_DATA=str(data))
    assert status == 0, output[-4000:]
    one, two = logged(single), logged(tmp_path / 'run')
    assert sorted(two) == list(range(1, STEPS + 1))
    for step, entry in two.items():
        for key in ('loss', 'loss_mask', 'loss_dice', 'loss_lm', 'loss_distill_oracle'):
            assert entry[key] == pytest.approx(one[2 * step][key], abs=1e-4), (step, key)
    assert max(entry['loss_mask'] for entry in two.values()) > 0
    exported = load_state(tmp_path / 'run' / 'model.safetensors')['state_dict']
    assert exported.keys() == load_state(single / 'model.safetensors')['state_dict'].keys()


def test_validation_under_zero3_does_not_hang_or_disturb_training(run_tool, logged, data, tmp_path):
    """Answers differ in length between the processes (3 samples for two)."""
    (tmp_path / 'zero3.json').write_text(json.dumps(ZERO3))
    curves = []
    for interval in (1, 100):
        work_dir = tmp_path / str(interval)
        status, output = run_tool(
            'bash', 'tools/dist_train.sh', 'configs/pixelsail/pixelsail_mini.py', 2, '--work-dir',
            work_dir, '--deepspeed', tmp_path / 'zero3.json', '--cfg-options',
            'train_cfg.max_iters=2', f'train_cfg.val_interval={interval}',
            'train_dataloader.batch_size=1', 'default_hooks.logger.interval=1',
            PIXELSAIL_DATA=str(data))
        assert status == 0, output[-4000:]
        assert 'refseg/cIoU' in output
        curves.append([entry['loss'] for entry in logged(work_dir).values()])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
