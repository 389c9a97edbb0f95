"""Checkpoint folders that DeepSpeed really wrote, against DeepSpeed's own reader."""

import os
import shutil
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from pixelsail_mm.checkpoints.checkpoint import (
    load_state,
    load_weights,
    open_state,
    weights_only_loading,
)
from pixelsail_mm.checkpoints.conversion.rewrite import zero_to_safetensors
from pixelsail_mm.checkpoints.formats.zero_checkpoint import Piece, ZeroTensor
from pixelsail_mm.errors import CheckpointError, ConfigError
from tests.helpers.checkpoint_cases import assert_same_logits, logits_of, tiny_pixel_sail

CASES = {
    1: ['2-tied-float32', '3-untied-float32'],
    2: [
        '1-tied-float32',
        '1-untied-float32',
        '2-tied-float32',
        '2-untied-float32',
        '3-tied-float32',
        '3-untied-float32',
    ],
    3: ['1-tied-bfloat16', '2-untied-bfloat16', '3-tied-bfloat16'],
}
EMBEDDING, HEAD = 'backbone.llm.model.embed_tokens.weight', 'backbone.llm.lm_head.weight'


@pytest.fixture(scope='module')
def saved(repo_root, warm_python, tmp_path_factory):
    """Give the folder of a case; all cases of one number of processes come from one run."""
    folders = {}

    def of(processes, case):
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp(f'zero_{processes}')
            done = subprocess.run(
                [
                    warm_python,
                    '-m',
                    'torch.distributed.run',
                    '--standalone',
                    f'--nproc_per_node={processes}',
                    'tests/test_checkpoints/test_formats/zero_run.py',
                    str(folders[processes]),
                    *CASES[processes],
                ],
                cwd=repo_root,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=540,
                env=dict(
                    os.environ,
                    PYTHONPATH=str(repo_root),
                    PYTHON_EXEC=warm_python,
                    OMP_NUM_THREADS='1',
                ),
            )
            assert done.returncode == 0, done.stdout[-4000:]
        return folders[processes] / case

    return of


def deepspeeds_own(folder):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with weights_only_loading(deepspeed=True):
        return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)


EVERY = [(processes, case) for processes, cases in CASES.items() for case in cases]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize('processes, case', EVERY)
def test_every_weight_is_the_one_deepspeed_reads(saved, processes, case):
    folder = saved(processes, case)
    ours, theirs = load_state(folder)['state_dict'], deepspeeds_own(folder)
    trained = load_file(f'{folder}.safetensors')
    # Stage 1 keeps frozen weights where DeepSpeed's reader does not look.
    assert theirs.keys() <= ours.keys()
    assert all(
        key.startswith(('neck.', 'backbone.patch_embed.')) for key in ours.keys() - theirs.keys()
    )
    for key, value in ours.items():
        if key in theirs:
            assert torch.equal(value.float(), theirs[key].float()), key
        if key in trained:
            torch.testing.assert_close(value.to(trained[key].dtype), trained[key], atol=0, rtol=0)
    assert (ours[HEAD].data_ptr() == ours[EMBEDDING].data_ptr()) == ('-tied' in case)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize('processes, case', EVERY)
def test_logits_are_those_of_the_trained_model(saved, tmp_path, processes, case):
    """Loading the folder, one file, shards: all equal what the processes held."""
    folder, tied = saved(processes, case), '-tied' in case
    target = tiny_pixel_sail(tied, seed=1)
    report = load_weights(target, folder, required_prefixes=[''])
    assert not report.missing and not report.unexpected
    logits = logits_of(target)
    if case.endswith('float32'):
        expected = tiny_pixel_sail(tied, seed=2)
        load_weights(expected, f'{folder}.safetensors')
        assert_same_logits(logits, expected)
    for path, size in ((tmp_path / 'all.safetensors', None), (tmp_path / 'shards', '20KB')):
        table = zero_to_safetensors(folder, path, max_shard_size=size)
        assert 'backbone' in table
        again = tiny_pixel_sail(tied, seed=3)
        load_weights(again, path, required_prefixes=[''])
        assert torch.equal(logits_of(again), logits)
    assert len(list((tmp_path / 'shards').glob('*.safetensors'))) > 2


@pytest.mark.integration
@pytest.mark.slow
def test_precision_can_be_chosen(saved, tmp_path):
    folder = saved(2, '3-tied-float32')
    zero_to_safetensors(folder, tmp_path / 'half.safetensors', dtype='bfloat16')
    halved, whole = load_file(tmp_path / 'half.safetensors'), load_state(folder)['state_dict']
    assert HEAD not in halved
    for key, value in halved.items():
        assert value.dtype == (torch.bfloat16 if whole[key].is_floating_point() else torch.int64)
        assert torch.equal(value, whole[key].to(value.dtype)), key


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize('stage', [1, 2, 3])
def test_incomplete_folders_are_refused(saved, tmp_path, stage):
    for number, (name, damage, message) in enumerate(
        (
            ('*rank_1_*optim_states.pt', 'remove', '2 .*_optim_states.pt files were written but 1'),
            ('*rank_1_*optim_states.pt', 'cut', r'rank_1_\S+optim_states.pt: not a readable'),
            ('*model_states.pt', 'cut', r'model_states.pt: not a readable'),
            ('*optim_states.pt', 'remove all', 'optim_states.pt files, which hold .* not there'),
            ('*model_states.pt', 'remove all', 'no .*_model_states.pt'),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(saved(2, f'{stage}-tied-float32'), folder)
        files = sorted(folder.glob(name))
        for file in files if damage == 'remove all' else files[:1]:
            if damage == 'cut':
                file.write_bytes(file.read_bytes()[:-2000])
            else:
                file.unlink()
        with pytest.raises(CheckpointError, match=message):
            load_state(folder)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize('stage', [2, 3])
def test_parts_of_another_run_are_refused(saved, tmp_path, stage):
    """Parts of a tied and of an untied model have different sizes."""
    folder = tmp_path / 'mixed'
    shutil.copytree(saved(2, f'{stage}-tied-float32'), folder)
    for file in saved(2, f'{stage}-untied-float32').glob('*rank_1_*optim_states.pt'):
        shutil.copy(file, folder)
    with pytest.raises(CheckpointError, match='of (different runs|another run)'):
        load_state(folder)


@pytest.mark.integration
@pytest.mark.slow
def test_code_in_a_part_does_not_run(saved, tmp_path):
    from tests.test_checkpoints.test_checkpoint import Payload

    folder = tmp_path / 'evil'
    shutil.copytree(saved(2, '3-tied-float32'), folder)
    part = next(folder.glob('*rank_1_*optim_states.pt'))
    torch.save(dict(optimizer_state_dict=Payload(tmp_path / 'created')), part)
    with pytest.raises(CheckpointError, match='rank_1.*holds more than weights.*mkdir'):
        load_state(folder)
    assert not (tmp_path / 'created').exists()


def pieces(tmp_path, values, *cuts):
    """Write values to files cut at ``cuts``; give the weight they make."""
    parts = []
    for number, part in enumerate(torch.tensor_split(values.flatten(), cuts)):
        path = tmp_path / str(number)
        path.write_bytes(b'xyz' + part.numpy().tobytes())
        parts.append(Piece(path, 3, len(part)))
    return ZeroTensor(values.shape, values.dtype, tuple(parts))


def test_weight_in_pieces(tmp_path):
    values = torch.arange(24.0).view(6, 4)
    weight = pieces(tmp_path, values, 5, 5, 17)
    assert torch.equal(weight.read(), values)
    assert torch.equal(torch.cat(list(weight.chunks())), values.flatten())
    assert torch.equal(weight[torch.tensor([4, 0, 1, 5])], values[[4, 0, 1, 5]])
    assert torch.equal(weight[1:3], values[1:3])
    half = torch.zeros(2, 4, dtype=torch.bfloat16)
    weight.copy_to(half, start=8)
    assert torch.equal(half, values[2:4].bfloat16())


def test_piece_that_ends_early_is_named(tmp_path):
    weight = pieces(tmp_path, torch.arange(24.0), 10)
    (tmp_path / '1').write_bytes(b'xyz')
    with pytest.raises(CheckpointError, match='1: ends before its last weight'):
        weight.read()


def test_without_zero_the_module_is_read(tmp_path):
    torch.save(
        dict(module=dict(a=torch.ones(2), b=torch.arange(3)), param_shapes=None),
        tmp_path / 'mp_rank_00_model_states.pt',
    )
    state = open_state(tmp_path)['state_dict']
    assert torch.equal(state['b'].read(), torch.arange(3))


def write_stage1(folder, *shapes, **optimizer):
    """Two processes' parts of one group of weights, 0, 1, 2, ... in order."""
    sizes = {f'w{number}': torch.Size(shape) for number, shape in enumerate(shapes)}
    total = sum(size.numel() for size in sizes.values())
    values = torch.arange(total + -total % 4, dtype=torch.float32)
    torch.save(
        dict(
            module=dict(buffer=torch.ones(2)), param_shapes=[sizes], shared_params=dict(tied='w0')
        ),
        folder / 'mp_rank_00_model_states.pt',
    )
    for rank, part in enumerate(values.chunk(2)):
        torch.save(
            dict(
                optimizer_state_dict=dict(
                    partition_count=[2], single_partition_of_fp32_groups=[part.clone()], **optimizer
                )
            ),
            folder / f'bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt',
        )


@pytest.mark.parametrize('optimizer', [dict(zero_stage=1), {}], ids=['named', 'bfloat16'])
def test_stage_1_by_hand(tmp_path, optimizer):
    """DeepSpeed's own optimizer for bfloat16 with float32 gradients does not name its stage."""
    write_stage1(tmp_path, (2, 3), (1,), **optimizer)
    state = load_state(tmp_path)['state_dict']
    assert state['w0'].tolist() == [[0, 1, 2], [3, 4, 5]] and state['w1'].tolist() == [6]
    assert state['tied'] is state['w0'] and state['buffer'].tolist() == [1, 1]


def test_compressed_part_is_refused(tmp_path):
    """What lies in it are not values."""
    from tests.test_checkpoints.test_checkpoint import repack

    write_stage1(tmp_path, (2, 3), zero_stage=1)
    part = next(tmp_path.glob('*rank_1_*'))
    part.rename(tmp_path / 'plain')
    repack(tmp_path / 'plain', part, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match='rank_1_.*cannot be read in place'):
        load_state(tmp_path)


def test_folder_around_it_names_it(tmp_path):
    """As DeepSpeed leaves it, with a file `latest`."""
    folder = tmp_path / 'global_step7'
    folder.mkdir()
    (tmp_path / 'latest').write_text('global_step9')
    write_stage1(folder, (2, 3), zero_stage=1)
    with pytest.raises(CheckpointError, match='a folder with neither .*pass .*global_step7$'):
        load_state(tmp_path)


@pytest.mark.parametrize(
    'content',
    [dict(a=1), dict(module=None), dict(module=3), dict(module={}, param_shapes=[dict(a=(2,))])],
    ids=str,
)
def test_other_layouts_are_refused(tmp_path, content):
    write_stage1(tmp_path, (2,), zero_stage=1)
    torch.save(content, tmp_path / 'mp_rank_00_model_states.pt')
    with pytest.raises(CheckpointError, match='not laid out as DeepSpeed 0.14'):
        load_state(tmp_path)


@pytest.mark.parametrize(
    'optimizer',
    [None, {}, dict(zero_stage='x', partition_count=1), dict(partition_count=[[1]])],
    ids=str,
)
def test_other_optimizers_are_refused(tmp_path, optimizer):
    write_stage1(tmp_path, (2,), zero_stage=1)
    for part in tmp_path.glob('*optim_states.pt'):
        torch.save(dict(optimizer_state_dict=optimizer), part)
    with pytest.raises(CheckpointError, match='not the state of a ZeRO optimizer'):
        load_state(tmp_path)


def test_shards_do_not_replace_the_checkpoint(tmp_path):
    work = tmp_path / 'run'
    (work / 'iter_7.pth').mkdir(parents=True)
    write_stage1(work / 'iter_7.pth', (2, 3), zero_stage=1)
    for target in (work, work / 'iter_7.pth'):
        with pytest.raises(ConfigError, match='in it would be lost'):
            zero_to_safetensors(work / 'iter_7.pth', target, max_shard_size='1GB')
    for size in ('16KB', '1GB'):  # the second replaces the first
        zero_to_safetensors(work / 'iter_7.pth', work / 'out', max_shard_size=size)
    assert set(load_state(work / 'out')['state_dict']) == {'w0', 'tied', 'buffer'}


def test_tensor_parallel_model_is_refused(tmp_path):
    torch.save(dict(module={}, mp_world_size=2), tmp_path / 'mp_rank_00_model_states.pt')
    with pytest.raises(CheckpointError, match='tensor parallelism'):
        load_state(tmp_path)


def test_wrong_requests_are_explained(tmp_path):
    with pytest.raises(CheckpointError, match='not a DeepSpeed checkpoint folder'):
        zero_to_safetensors(tmp_path, tmp_path / 'a.safetensors')
    with pytest.raises(ConfigError, match='use one of'):
        zero_to_safetensors(tmp_path, tmp_path / 'a.safetensors', dtype='int8')
    with pytest.raises(ConfigError, match='or a folder'):
        zero_to_safetensors(tmp_path, tmp_path / 'folder')
