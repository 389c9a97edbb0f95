import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.checkpoints.formats.checkpoint_files import write_pointer
from pixelsail_mm.checkpoints.formats.resumable import verify_checkpoint, write_manifest
from pixelsail_mm.checkpoints.formats.safe_pickle import read_pickle
from pixelsail_mm.errors import CheckpointError
from tests.helpers.resumable import find_resumable


def save(path, value=1):
    torch.save(dict(state_dict=dict(a=torch.full((100,), value))), path)
    return path


def save_zero(folder, value=1):
    """Make a folder as DeepSpeed's ZeRO-2 writes it in two processes."""
    folder.mkdir(exist_ok=True)
    shapes = [{'values': torch.Size([200])}]
    states = dict(module=dict(values=torch.full((200,), value)), param_shapes=shapes)
    torch.save(states, folder / 'mp_rank_00_model_states.pt')
    for rank in range(2):
        optimizer = dict(zero_stage=2, partition_count=2, values=torch.full((100,), value))
        torch.save(
            dict(optimizer_state_dict=optimizer),
            folder / f'zero_pp_rank_{rank}_mp_rank_00_optim_states.pt',
        )
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_link_to_nothing_is_passed_over(tmp_path):
    save(tmp_path / 'iter_2.pth')
    (tmp_path / 'iter_9.pth').symlink_to(tmp_path / 'gone.pth')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00'])
def test_damaged_pointer_is_passed_over(tmp_path, content):
    save(tmp_path / 'iter_2.pth')
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_the_newest_iteration_wins_over_the_pointer(tmp_path):
    """A run that is killed between the two writes leaves a pointer to the checkpoint before."""
    for step in (10, 2):
        save(tmp_path / f'iter_{step}.pth')
    write_pointer(tmp_path, tmp_path / 'iter_2.pth')
    assert find_resumable(tmp_path).endswith('iter_10.pth')


def test_pointer_adds_a_name_that_no_pattern_finds(tmp_path):
    for name in ('iter_2.pth', 'state_7.pth'):
        save(tmp_path / name)
    assert find_resumable(tmp_path).endswith('iter_2.pth')
    write_pointer(tmp_path, '/somewhere/else/state_7.pth')  # the work dir was moved
    assert find_resumable(tmp_path) == str(tmp_path / 'state_7.pth')
    save(tmp_path / 'iter_8.pth')
    assert find_resumable(tmp_path).endswith('iter_8.pth')


def test_epochs_are_ordered_by_their_iterations(tmp_path):
    torch.save(dict(meta=dict(iter=300)), tmp_path / 'epoch_3.pth')
    torch.save(dict(meta=dict(iter=200)), tmp_path / 'iter_200.pth')
    assert find_resumable(tmp_path).endswith('epoch_3.pth')
    torch.save(dict(meta=dict(iter=400)), tmp_path / 'iter_400.pth')
    assert find_resumable(tmp_path).endswith('iter_400.pth')


def test_broken_checkpoint_falls_back_to_the_one_before(tmp_path):
    for step in (2, 4):
        save(tmp_path / f'iter_{step}.pth')
    write_pointer(tmp_path, tmp_path / 'iter_4.pth')
    cut(tmp_path / 'iter_4.pth')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_unfinished_checkpoint_is_no_candidate(tmp_path):
    save(tmp_path / 'iter_2.pth')
    (tmp_path / 'iter_4.pth.unfinished').write_bytes(b'half')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_nothing_to_resume(tmp_path):
    assert find_resumable(tmp_path) is None
    assert find_resumable(tmp_path / 'absent') is None


def test_only_broken_checkpoints_are_an_error(tmp_path):
    cut(save(tmp_path / 'iter_2.pth'))
    with pytest.raises(CheckpointError, match=r'iter_2\.pth: truncated'):
        find_resumable(tmp_path)


def test_deepspeed_folder_needs_every_part_whole(tmp_path):
    folder = tmp_path / 'iter_2.pth'
    folder.mkdir()
    with pytest.raises(CheckpointError, match='no .*model_states'):
        verify_checkpoint(folder)
    save_zero(folder)
    verify_checkpoint(folder)
    part = folder / 'zero_pp_rank_1_mp_rank_00_optim_states.pt'
    content = part.read_bytes()
    cut(part)
    with pytest.raises(CheckpointError, match='rank_1.*truncated'):
        verify_checkpoint(folder)
    part.unlink()
    with pytest.raises(CheckpointError, match='2 .*optim_states.pt files were written but 1'):
        verify_checkpoint(folder)
    part.write_bytes(content)
    verify_checkpoint(folder)


def test_manifest_names_what_is_missing_or_foreign(tmp_path):
    folder = save_zero(tmp_path / 'iter_2.pth')
    write_manifest(folder)
    verify_checkpoint(folder)
    name = 'zero_pp_rank_1_mp_rank_00_optim_states.pt'
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f'{name} is missing'):
        verify_checkpoint(folder)
    (folder / name).write_bytes(content + b' ')
    with pytest.raises(CheckpointError, match=rf'{name}: has [\d,]+ bytes where [\d,]+ were'):
        verify_checkpoint(folder)
    (folder / name).write_bytes(content)
    (folder / name.replace('1', '2')).write_bytes(content)
    with pytest.raises(CheckpointError, match='not in manifest.json'):
        verify_checkpoint(folder)
    (folder / name.replace('1', '2')).unlink()
    (folder / 'manifest.json').write_text('{"files": [')
    with pytest.raises(CheckpointError, match='manifest.json: damaged'):
        verify_checkpoint(folder)


def test_processes_share_the_reading(tmp_path):
    """Each part is read by one of them, and by no other."""
    folder = save_zero(tmp_path / 'iter_2.pth')
    part = folder / 'zero_pp_rank_1_mp_rank_00_optim_states.pt'
    damaged = bytearray(part.read_bytes())
    damaged[damaged.index(b'values') + 200] ^= 1
    part.write_bytes(bytes(damaged))
    faults = 0
    for rank in range(3):
        try:
            verify_checkpoint(folder, (rank, 3))
        except CheckpointError:
            faults += 1
    assert faults == 1


def same(left, right):
    """Compare two contents of checkpoints, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def damage(path, kind, place, change):
    """Flip a bit, cut, or delete; ``place`` is a share of the file."""
    if kind == 'delete':
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    if kind == 'cut':
        content = content[:position]
    else:
        content[position] ^= change
    path.write_bytes(bytes(content))


@given(
    data=st.data(),
    kind=st.sampled_from(['flip', 'flip', 'flip', 'cut', 'delete']),
    # The structure of an archive is at its beginning and its end.
    place=st.one_of(st.floats(0, 0.999), st.floats(0, 0.05), st.floats(0.9, 0.999)),
    change=st.integers(1, 255),
)
@settings(max_examples=100)
@pytest.mark.parametrize('zero', [False, True])
def test_damage_is_found_or_does_not_matter(tmp_path_factory, zero, data, kind, place, change):
    """Whatever is damaged: the checkpoint before is taken, or the weights are the saved ones."""
    work = tmp_path_factory.mktemp('damage')
    before, newest = work / 'iter_2.pth', work / 'iter_4.pth'
    for number, path in enumerate((before, newest)):
        if zero:
            write_manifest(save_zero(path, number))
        else:
            save(path, number)
    files = sorted(newest.iterdir()) if zero else [newest]
    contents = {path: read_pickle(path) for path in files if path.suffix in ('.pt', '.pth')}
    damage(data.draw(st.sampled_from(files)), kind, place, change)
    found = find_resumable(work)
    if found == str(before):
        return
    assert found == str(newest)
    for path, content in contents.items():
        assert same(read_pickle(path), content)
