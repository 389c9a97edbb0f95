"""Two processes whose batches of two hold other numbers of images, masks and prompts."""

import json

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from tests.integration.test_training.test_text_only_rank import ZERO3
from tests.test_engine.mixed_components import ALIKE, PAIRS

KEYS = ('loss', 'loss_lm', 'loss_mask', 'loss_dice', 'grad_norm')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
    """Folder for the runs of one process, one for each config."""
    return tmp_path_factory.mktemp('one')


@pytest.mark.parametrize(
    ('config', 'zero', 'more'),
    [
        ('mixed_config', 'zero3', ()),
        ('mixed_config', 'zero2', ()),
        ('mixed_config', 'none', ()),
        ('mixed_other_config', 'zero3', ('loss_distill_maps', 'point.loss_point')),
    ],
)
def test_no_mix_hangs_or_changes_a_loss(
    run_tool, warm_python, logged, tmp_path, tokenizer, one_process, config, zero, more
):
    (tmp_path / 'zero3.json').write_text(json.dumps(ZERO3))
    zero = tmp_path / 'zero3.json' if zero == 'zero3' else zero
    path = f'tests/integration/test_training/{config}.py'
    options = ['--cfg-options', 'optim_wrapper.optimizer.lr=1e-4']
    variables = dict(PIXELSAIL_TEST_TOKENIZER=str(tokenizer))
    one, two = one_process / config, tmp_path / 'two'
    if not one.exists():
        status, output = run_tool(
            warm_python,
            'tools/train.py',
            path,
            '--work-dir',
            one,
            *options,
            f'train_cfg.max_iters={2 * len(PAIRS)}',
            'default_hooks.logger.interval=2',
            'optim_wrapper.accumulative_counts=2',
            **variables,
        )
        assert status == 0, output[-4000:]
    assert ALIKE > 3  # in the first steps ZeRO-3 itself compares the processes' calls
    status, output = run_tool(
        'bash',
        'tools/dist_train.sh',
        path,
        2,
        '--work-dir',
        two,
        '--deepspeed',
        zero,
        *options,
        f'train_cfg.max_iters={len(PAIRS)}',
        **variables,
    )
    assert status == 0, output[-4000:]
    single, double = logged(one), logged(two)
    assert sorted(double) == list(range(1, len(PAIRS) + 1))
    for step, entry in double.items():
        for key in (*KEYS, *more):
            expected = pytest.approx(single[2 * step][key], abs=1e-4, rel=1e-4)
            assert entry[key] == expected, (step, key, PAIRS[step - 1])
    first, second = (
        load_state(folder / 'model.safetensors')['state_dict'] for folder in (one, two)
    )
    # Training moves the weights by 1e-3.
    torch.testing.assert_close(dict(second), dict(first), atol=1e-5, rtol=0)
