"""LoRA trained by two processes against one, with every strategy; then merged."""

import json
import sys

import pytest

from pixelsail_mm.engine.checkpoint import load_state

CONFIG = 'tests/test_engine/lora_config.py'
STEPS = 2
# The tokenizer of ShapesWorld begins with the chat tokens and ends with Pixel-SAIL's own.
LAST = 20
ROWS = 'backbone.llm.model.embed_tokens.new_rows'
TABLE = 'backbone.llm.model.embed_tokens.weight'

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
    """Folder of the run of one process, made by the first test."""
    return tmp_path_factory.mktemp('single')


@pytest.mark.parametrize('strategy', ['none', 'zero2', 'zero3'])
def test_two_processes_train_what_one_trains(run_tool, logged, data, single, tmp_path, strategy):
    shared = ['optim_wrapper.optimizer.lr=1e-3', f'default_hooks.checkpoint.interval={STEPS}']
    if not any(single.iterdir()):
        status, output = run_tool(
            sys.executable, 'tools/train.py', CONFIG, '--work-dir', single, '--cfg-options',
            *shared, f'train_cfg.max_iters={2 * STEPS}', 'default_hooks.logger.interval=2',
            'optim_wrapper.accumulative_counts=2', PIXELSAIL_DATA=str(data))
        assert status == 0, output[-4000:]
        assert 'is frozen for tokens' not in output
    work_dir = tmp_path / 'run'
    status, output = run_tool(
        'bash', 'tools/dist_train.sh', CONFIG, 2, '--work-dir', work_dir, '--deepspeed', strategy,
        '--cfg-options', *shared, f'train_cfg.max_iters={STEPS}', PIXELSAIL_DATA=str(data))
    assert status == 0, output[-4000:]
    one, two = logged(single), logged(work_dir)
    for step in range(1, STEPS + 1):
        for key in ('loss', 'loss_mask', 'loss_lm', 'grad_norm'):
            expected = pytest.approx(one[2 * step][key], abs=1e-4, rel=1e-4)
            assert two[step][key] == expected, (step, key)
    exported = load_state(work_dir / 'model.safetensors')['state_dict']
    expected = load_state(single / 'model.safetensors')['state_dict']
    assert exported.keys() == expected.keys()
    for key, value in expected.items():
        assert (exported[key] - value).abs().max() < 1e-4, key
    assert (exported[ROWS][-LAST:] - exported[TABLE][-LAST:]).abs().max() > 1e-4
    checkpoint = work_dir / f'iter_{STEPS}.pth'
    last = load_state(checkpoint)['state_dict']
    for key, value in exported.items():
        assert (last[key] - value).abs().max() == 0, key
    if strategy != 'zero3':
        return  # a merge reads what `load_state` gives, which is the same for all

    status, output = run_tool(sys.executable, 'tools/model_converters/merge_lora.py', CONFIG,
                              checkpoint, tmp_path / 'merged.safetensors',
                              PIXELSAIL_DATA=str(data))
    assert status == 0, output[-4000:]
    assert 'model.backbone.lora=None' in output
    merged = load_state(tmp_path / 'merged.safetensors')['state_dict']
    assert (merged[TABLE][-LAST:] - last[ROWS][-LAST:]).abs().max() == 0
    assert not any('lora_' in key for key in merged)
