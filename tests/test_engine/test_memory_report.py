"""Too little memory: which errors mean it, what the report says, in training and evaluation."""

import errno
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from pixelsail_mm.command_line import explain, run_command
from pixelsail_mm.config import read_config
from pixelsail_mm.engine.memory_report import (
    describe_batch,
    describe_memory,
    explaining_memory,
    remedies,
)
from pixelsail_mm.engine.runner_factory import build_runner, build_test_runner
from pixelsail_mm.errors import (
    OUT_OF_MEMORY,
    MemoryShortageError,
    is_out_of_memory,
    is_worker_killed,
)
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from pixelsail_mm.tokenization import SpecialTokens
from tests.test_engine.memory_components import TOO_MANY
from tests.test_engine.mixed_components import make_batch

CONFIG = Path(__file__).with_name('toy_config.py')
numbers = count()


@pytest.fixture
def config(tmp_path):
    """Read the toy config with options; every run gets a name of its own."""

    def read(**options):
        cfg = read_config(str(CONFIG), [f'{key}={value}' for key, value in options.items()])
        cfg.work_dir, cfg.experiment_name = str(tmp_path), f'memory{next(numbers)}'
        cfg.launcher = 'none'
        return cfg

    return read


def raised(ask):
    with pytest.raises(Exception) as error:
        ask()
    return error.value


@pytest.mark.parametrize(
    'ask',
    [
        lambda: torch.empty(TOO_MANY),
        lambda: np.empty(TOO_MANY),
        lambda: bytearray(TOO_MANY * 4),
        lambda: open_none(OSError(errno.ENOMEM, 'Cannot allocate memory')),
        lambda: open_none(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1 GiB')),
    ],
)
def test_errors_of_the_allocators_are_known(ask):
    error = raised(ask)
    assert is_out_of_memory(error) and not is_worker_killed(error)
    assert explain(error).startswith('out of memory: ')


def open_none(error):
    raise error


@pytest.mark.parametrize(
    'error', [ValueError("can't allocate memory"), RuntimeError('bug'), OSError(2, 'No such file')]
)
def test_other_errors_are_none_of_them(error):
    assert not is_out_of_memory(error)


def test_report_of_a_training(config, capfd):
    """On the CPU, by a real allocation, in the third iteration."""
    cfg = config(**{'model.type': 'HungryModel', 'model.after': 2})
    runner = build_runner(cfg)
    with pytest.raises(MemoryShortageError) as error:
        runner.train()
    said = str(error.value)
    assert said.startswith('out of memory in iteration 3 of the training (rank 0 of 1): RuntimeE')
    assert 'DefaultCPUAllocator' in said and '\n' not in said
    text = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    assert 'out of memory in iteration 3' in text
    for words in (
        '1 samples: ',
        ' tokens, in rows of ',
        'peak of this process ',
        'max_size of ResizeToGrid',
        'model.backbone.gradient_checkpointing=True',
    ):
        assert words in text

    def again():
        raise error.value

    assert run_command(again) == OUT_OF_MEMORY
    assert capfd.readouterr().err.startswith('error: out of memory in iteration 3')


@pytest.mark.parametrize('mode', ['val', 'test'])
def test_report_of_an_evaluation(config, tmp_path, mode):
    build_runner(config(**{'train_cfg.max_iters': 1})).train()
    hungry = {'model.type': 'HungryModel', 'model.mode': 'predict', 'model.after': 3}
    if mode == 'val':  # two batches of the second set are fine
        runner = build_runner(config(**hungry, **{'train_cfg.val_interval': 1}))
        ask = runner.train
    else:
        runner = build_test_runner(config(**hungry), str(tmp_path / 'model.safetensors'))
        ask = runner.test
    noun = dict(val='validation', test='test')[mode]
    with pytest.raises(MemoryShortageError, match=f'^out of memory in the {noun} .rank 0'):
        ask()
    text = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    assert 'what helps: max_size' in text  # a batch of one sample cannot be smaller
    assert 'gradient_checkpointing' not in text


@pytest.mark.parametrize('fault', ['allocate', 'die'])
def test_report_of_a_worker(config, fault):
    options = {
        'train_dataloader.dataset.type': 'HungryDataset',
        'train_dataloader.dataset.fault': fault,
        'train_dataloader.num_workers': 2,
        'train_dataloader.sampler.shuffle': False,
        'train_cfg.max_iters': 12,
    }
    runner = build_runner(config(**options))
    with pytest.raises(MemoryShortageError) as error:
        runner.train()
    assert ('is killed by signal: Killed' if fault == 'die' else 'allocate memory') in str(
        error.value
    )
    text = (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()
    batch = dict(die="the worker's is not known", allocate='none was at hand')[fault]
    assert f'batch: {batch}' in text
    assert ('train_dataloader.num_workers=1 (now 2)' in text) == (fault == 'die')


def test_a_worker_that_dies_while_another_library_is_at_work(config):
    """MMEngine formats the config with yapf, which has an error of its own for every error."""
    runner = build_runner(config())

    def train():
        with explaining_memory(runner, 'train_dataloader', 'in the training'):
            try:
                raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')
            except RuntimeError:
                raise SyntaxError('Failed to format the config file') from None

    with pytest.raises(MemoryShortageError, match='in the training .*pid 7. is killed'):
        train()


def test_other_errors_pass(config):
    runner = build_runner(config())
    with pytest.raises(ZeroDivisionError), explaining_memory(runner, 'train_dataloader', 'now'):
        1 / 0  # noqa: B018


def test_a_batch_of_the_model():
    tokens = SpecialTokens.from_tokenizer(byte_tokenizer())
    pairs = make_batch(tokens, ('unequal', True, True)) + make_batch(tokens, ('none', False, False))
    batch = dict(
        inputs={key: [inputs.get(key) for inputs, _ in pairs] for key in pairs[0][0]},
        data_samples=[sample for _, sample in pairs],
    )
    text = '\n'.join(describe_batch(batch))
    assert '4 samples: ' in text and '3 masks: 2 of ' in text and '2 visual prompts' in text
    assert '12 patches, in grids of 2x3, 3x2' in text and '2 images: ' in text
    lengths = [len(inputs['input_ids']) for inputs, _ in pairs]
    assert f'{sum(lengths)} tokens, in rows of {", ".join(map(str, lengths))}' in text


@pytest.mark.parametrize('batch', [None, [], {}, dict(inputs=torch.zeros(2)), dict(inputs={})])
def test_other_batches(batch):
    assert all(describe_batch(batch))


def test_memory_so_far():
    (line,) = describe_memory() if not torch.cuda.is_available() else describe_memory()[:1]
    assert float(line.split()[4]) > 0.1


PIPELINE = [dict(type='LoadImage'), dict(type='ResizeToGrid', max_size=1024)]


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(), 'model.backbone.gradient_checkpointing=True'),
        (dict(model=dict(backbone=dict(gradient_checkpointing=True))), '--deepspeed zero2'),
        (
            dict(model=dict(backbone=dict(gradient_checkpointing=True)), deepspeed='zero2'),
            '--deepspeed zero3_offload',
        ),
    ],
)
def test_three_settings_that_help(settings, words):
    dataset = dict(datasets=[dict(pipeline=PIPELINE), dict(pipeline=PIPELINE)])
    loader = dict(batch_size=4, dataset=dataset)
    cfg = Config(dict(train_dataloader=loader, optim_wrapper=dict(), **settings))
    fewer, smaller, third = remedies(cfg, 'train_dataloader')
    assert fewer.startswith('train_dataloader.batch_size=2 (now 4) with optim_wrapper.accumulative')
    key, _, value = smaller.partition(' ')[0].partition('=')
    assert key == 'train_dataloader.dataset.datasets.0.pipeline.1.max_size' and value == '512'
    assert 'likewise in 1 more pipelines' in smaller and third.startswith(words)
    cfg.merge_from_dict({key: int(value)})  # --cfg-options takes it
    assert cfg.train_dataloader.dataset.datasets[0].pipeline[1].max_size == 512
    assert len(remedies(cfg, 'train_dataloader', worker=True)) == 3


def test_an_evaluation_of_several_sets():
    loaders = [dict(batch_size=1), dict(batch_size=8)]
    found = remedies(Config(dict(val_dataloader=loaders)), 'val_dataloader.1')
    assert found[0] == 'val_dataloader.1.batch_size=4 (now 8)' and len(found) == 2
