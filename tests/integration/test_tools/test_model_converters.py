"""Conversion to the authors' names and back, as commands on real files."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelsail_mm.checkpoints.checkpoint import load_state
from pixelsail_mm.checkpoints.conversion.official_keys import (
    UnknownKeysError,
    mm_to_official,
    official_to_mm,
)
from pixelsail_mm.checkpoints.conversion.rewrite import convert_checkpoint
from pixelsail_mm.command_line import explain
from pixelsail_mm.errors import CheckpointError, ConfigError


@pytest.fixture
def convert(run_command, warm_python):
    def run(tool, *arguments):
        return run_command(warm_python, f'tools/model_converters/{tool}.py', *arguments)

    return run


@pytest.mark.parametrize('name', ['weights', 'weights_tied_preproj'])
@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_round_trip_is_bit_for_bit(parity_dir, tmp_path, name, suffix):
    source = f'{parity_dir}/{name}.safetensors'
    ours, back = tmp_path / f'ours.{suffix}', tmp_path / 'back.safetensors'
    table = convert_checkpoint(source, ours, official_to_mm)
    assert 'mask_head' in table and 'total' in table
    convert_checkpoint(ours, back, mm_to_official)
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_commands(convert, parity_dir, tmp_path):
    """Both tools as a user runs them."""
    source = f'{parity_dir}/weights.safetensors'
    ours, back = tmp_path / 'ours.safetensors', tmp_path / 'back.safetensors'
    first = convert('official_to_mm', source, ours)
    assert first.returncode == 0, first.stderr
    assert 'mask_head' in first.stdout and str(ours) in first.stdout
    assert convert('mm_to_official', ours, back).returncode == 0
    assert load_file(source).keys() == load_file(back).keys()


def test_unknown_names_are_listed(tmp_path):
    source, target = tmp_path / 'foreign.safetensors', tmp_path / 'out.safetensors'
    save_file(
        {
            'vision_tower.weight': torch.ones(2),
            'single_transformer.model.norm.weight': torch.ones(2),
        },
        source,
    )
    with pytest.raises(UnknownKeysError, match='vision_tower.weight.*--ignore-unknown'):
        convert_checkpoint(source, target, official_to_mm)
    assert not target.exists()
    convert_checkpoint(source, target, partial(official_to_mm, ignore_unknown=True))
    assert list(load_file(target)) == ['backbone.llm.model.norm.weight']


def test_user_errors_are_one_message(tmp_path):
    explained = explain(UnknownKeysError(['vision_tower.weight']))
    assert explained and 'vision_tower.weight' in explained
    with pytest.raises(ConfigError, match='suffix') as error:
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.txt', official_to_mm)
    assert explain(error.value)


def test_truncated_source_leaves_the_target_alone(parity_dir, tmp_path):
    source, target = tmp_path / 'cut.safetensors', tmp_path / 'out.safetensors'
    with open(f'{parity_dir}/weights.safetensors', 'rb') as file:
        source.write_bytes(file.read()[:100_000])
    target.write_bytes(b'precious')
    with pytest.raises(CheckpointError, match=str(source)):
        convert_checkpoint(source, target, official_to_mm)
    assert target.read_bytes() == b'precious'
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, target.name]


def test_folder_of_shards(parity_dir, tmp_path):
    source = load_file(f'{parity_dir}/weights.safetensors')
    names, shards = list(source), tmp_path / 'shards'
    shards.mkdir()
    for part in range(2):
        save_file({name: source[name] for name in names[part::2]}, shards / f'{part}.safetensors')
    convert_checkpoint(shards, tmp_path / 'ours.safetensors', official_to_mm)
    converted = load_file(tmp_path / 'ours.safetensors')
    expected = official_to_mm(source)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    'key',
    [
        'single_transformer.base_model.model.model.norm.weight',
        'upsample_blocks.0.1.weight',
        'upsample_blocks.x.0.weight',
        'llm.model.norm.weight',
    ],
)
def test_near_misses_are_unknown(key):
    """A LoRA wrapper's or another block's name must not become a plausible name of ours."""
    with pytest.raises(UnknownKeysError, match=key):
        official_to_mm({key: torch.ones(1)})


@pytest.mark.parametrize('tied_preproj', [False, True])
def test_names_are_those_of_the_model(parity_dir, tied_preproj):
    from pixelsail_mm.registry import MODELS
    from tests.helpers.parity import ParityFixtures

    model = MODELS.build(ParityFixtures(parity_dir).model_config(tied_preproj))
    own = {key: value.shape for key, value in model.state_dict().items()}
    name = 'weights_tied_preproj' if tied_preproj else 'weights'
    converted = official_to_mm(load_file(f'{parity_dir}/{name}.safetensors'))
    assert {key: value.shape for key, value in converted.items()} == own


def test_distillation_heads_are_not_exported():
    state = {'distill.0.proj.weight': torch.ones(1), 'prompt_injector.proj.weight': torch.ones(1)}
    assert list(mm_to_official(state)) == ['single_transformer.model.vp_embed.weight']


@pytest.mark.slow
def test_zero_command(convert, tmp_path):
    """Shards of a DeepSpeed folder as a user puts them together; a wrong folder is one message."""
    from pixelsail_mm.benchmarks.checkpoints import write_zero3

    shapes = dict(a=torch.Size([3, 5]), b=torch.Size([4]))
    write_zero3(tmp_path / 'iter_1.pth', shapes, 2, dict(c='a'))
    done = convert(
        'zero_to_safetensors',
        tmp_path / 'iter_1.pth',
        tmp_path / 'out',
        '--max-shard-size',
        '0.05KB',
        '--dtype',
        'bfloat16',
    )
    assert done.returncode == 0, done.stderr
    assert 'total' in done.stdout
    state = load_state(tmp_path / 'out')['state_dict']
    assert {key: value.shape for key, value in state.items()} == shapes | dict(c=shapes['a'])
    expected = load_state(tmp_path / 'iter_1.pth')['state_dict']
    assert all(torch.equal(value, expected[key].bfloat16()) for key, value in state.items())
    done = convert(
        'zero_to_safetensors', tmp_path / 'iter_1.pth', tmp_path / 'x', '--max-shard-size', 'large'
    )
    assert done.returncode == 2 and "size of shards 'large'" in done.stderr
