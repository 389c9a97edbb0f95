"""LoRA trained by two processes against one, with every strategy; then merged."""

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


@pytest.mark.parametrize('strategy', ['none', 'zero2', 'zero3'])
def test_two_processes_train_what_one_trains(two_against_one, run_tool, mixed_world, tmp_path,
                                             strategy):
    single, work_dir, output = two_against_one(
        CONFIG, strategy, STEPS, ('loss', 'loss_mask', 'loss_lm', 'grad_norm'),
        f'default_hooks.checkpoint.interval={STEPS}')
    assert 'is frozen for tokens' not in output
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
                              PIXELSAIL_DATA=str(mixed_world))
    assert status == 0, output[-4000:]
    assert 'model.backbone.lora=None' in output
    merged = load_state(tmp_path / 'merged.safetensors')['state_dict']
    assert (merged[TABLE][-LAST:] - last[ROWS][-LAST:]).abs().max() == 0
    assert not any('lora_' in key for key in merged)
