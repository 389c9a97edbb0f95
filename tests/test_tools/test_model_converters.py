"""Conversion to the authors' names and back, as commands on real files."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file


def run(repo_root, tool, *args):
    return subprocess.run(
        [sys.executable, str(repo_root / 'tools' / 'model_converters' / f'{tool}.py'),
         *map(str, args)], capture_output=True, text=True, cwd=repo_root)


@pytest.mark.parametrize('name', ['weights', 'weights_tied_preproj'])
@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_round_trip_is_bit_for_bit(repo_root, parity_dir, tmp_path, name, suffix):
    source = f'{parity_dir}/{name}.safetensors'
    ours, back = tmp_path / f'ours.{suffix}', tmp_path / 'back.safetensors'
    first = run(repo_root, 'official_to_mm', source, ours)
    assert first.returncode == 0, first.stderr
    assert 'mask_head' in first.stdout and 'total' in first.stdout
    assert run(repo_root, 'mm_to_official', ours, back).returncode == 0
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_unknown_names_are_listed(repo_root, tmp_path):
    source, target = tmp_path / 'foreign.safetensors', tmp_path / 'out.safetensors'
    save_file({'vision_tower.weight': torch.ones(2), 'single_transformer.model.norm.weight':
               torch.ones(2)}, source)
    result = run(repo_root, 'official_to_mm', source, target)
    assert result.returncode != 0 and not target.exists()
    assert 'vision_tower.weight' in result.stderr and '--ignore-unknown' in result.stderr
    assert 'Traceback' not in result.stderr
    assert run(repo_root, 'official_to_mm', source, target, '--ignore-unknown').returncode == 0
    assert list(load_file(target)) == ['backbone.llm.model.norm.weight']


def test_truncated_source_leaves_the_target_alone(repo_root, parity_dir, tmp_path):
    source, target = tmp_path / 'cut.safetensors', tmp_path / 'out.safetensors'
    with open(f'{parity_dir}/weights.safetensors', 'rb') as file:
        source.write_bytes(file.read()[:100_000])
    target.write_bytes(b'precious')
    result = run(repo_root, 'official_to_mm', source, target)
    assert result.returncode != 0 and str(source) in result.stderr
    assert 'Traceback' not in result.stderr
    assert target.read_bytes() == b'precious'


def test_distillation_heads_are_not_exported():
    from pixelsail_mm.models.official_keys import mm_to_official
    state = {'distill.0.proj.weight': torch.ones(1), 'prompt_injector.proj.weight': torch.ones(1)}
    assert list(mm_to_official(state)) == ['single_transformer.model.vp_embed.weight']
