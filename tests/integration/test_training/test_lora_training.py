"""LoRA trained by two processes against one, with every strategy; merged; resumed with ZeRO."""

import re

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_state, save_weights
from pixelsail_mm.config import read_config
from pixelsail_mm.registry import MODELS
from tests.integration.test_training.lora_resume_run import MODEL

CONFIG = 'tests/integration/test_training/lora_config.py'
STEPS = 2
RESUMED = ('zero1', 'zero3', 'zero2-qlora')
# The tokenizer of ShapesWorld begins with the chat tokens and ends with Pixel-SAIL's own.
LAST = 20
ROWS = 'backbone.llm.model.embed_tokens.new_rows'
TABLE = 'backbone.llm.model.embed_tokens.weight'

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('strategy', ['none', 'zero3'])
def test_two_processes_train_what_one_trains(
    two_against_one, run_tool, warm_python, mixed_world, tmp_path, strategy
):
    single, work_dir, output = two_against_one(
        CONFIG,
        strategy,
        STEPS,
        ('loss', 'loss_mask', 'loss_lm', 'grad_norm'),
        f'default_hooks.checkpoint.interval={STEPS}',
    )
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

    status, output = run_tool(
        warm_python,
        'tools/model_converters/merge_lora.py',
        CONFIG,
        checkpoint,
        tmp_path / 'merged.safetensors',
        PIXELSAIL_DATA=str(mixed_world),
    )
    assert status == 0, output[-4000:]
    assert 'model.backbone.lora=None' in output
    merged = load_state(tmp_path / 'merged.safetensors')['state_dict']
    assert (merged[TABLE][-LAST:] - last[ROWS][-LAST:]).abs().max() == 0
    assert not any('lora_' in key for key in merged)


def test_resumed_as_if_never_interrupted(
    run_tool, warm_python, logged, mixed_world, tmp_path, monkeypatch
):
    """Frozen weights come back from the checkpoint alone, bit for bit, and losses with them."""
    monkeypatch.setenv('PIXELSAIL_DATA', str(mixed_world))
    base = tmp_path / 'base.safetensors'
    torch.manual_seed(1)  # the trainings have seed 0
    cfg = read_config(CONFIG, [*MODEL, 'model.backbone.lora=None'])
    plain = MODELS.build(cfg.model).state_dict()
    save_weights(plain, base)
    status, output = run_tool(
        warm_python,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        'tests/integration/test_training/lora_resume_run.py',
        tmp_path,
        base,
        *RESUMED,
    )
    assert status == 0, output[-4000:]
    trained = {}
    for case in RESUMED:
        whole, resumed = (
            load_state(tmp_path / case / part / 'model.safetensors')['state_dict']
            for part in ('whole', 'resumed')
        )
        trained[case] = whole
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[key], value) for key, value in whole.items()), case
        assert torch.equal(whole[TABLE], plain[TABLE])
        assert not torch.equal(whole[ROWS][-LAST:], plain[TABLE][-LAST:])
        scalars = [logged(tmp_path / case / part) for part in ('whole', 'resumed')]
        assert sorted(scalars[0]) == [1, 2] and sorted(scalars[1]) == [2]
        for key in ('loss', 'grad_norm', 'lr'):
            assert scalars[1][2][key] == scalars[0][2][key], (case, key)
    for key, value in trained['zero1'].items():
        assert (trained['zero3'][key] - value).abs().max() < 1e-4, key
        frozen = plain.get(key.replace('.base_layer.', '.'))
        if key.startswith('backbone.llm.') and frozen is not None:
            assert torch.equal(value, frozen), key
    refused = (tmp_path / 'zero1' / 'refused.txt').read_text()
    assert re.search('size mismatch for .*lora_.*use the config', refused), refused
