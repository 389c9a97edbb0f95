import os

import pytest
import torch

from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    check_replaceable,
    find_resumable,
    move_into_place,
    replace_when_complete,
    verify_checkpoint,
    write_pointer,
)
from pixelsail_mm.errors import CheckpointError, ConfigError


def save(path, value=1):
    torch.save(dict(state_dict=dict(a=torch.full((100,), value))), path)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_failure_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(RuntimeError), replace_when_complete(path) as unfinished:
        with open(unfinished, 'w') as handle:
            handle.write('half')
        raise RuntimeError
    assert path.read_text() == 'old'
    assert [entry.name for entry in tmp_path.iterdir()] == ['file']


def test_folder_replaces_folder(tmp_path):
    old, new = tmp_path / 'iter_2.pth', tmp_path / 'new'
    for folder, text in ((old, 'old'), (new, 'new')):
        folder.mkdir()
        (folder / 'x').write_text(text)
    move_into_place(new, old)
    assert (old / 'x').read_text() == 'new'
    assert [entry.name for entry in tmp_path.iterdir()] == ['iter_2.pth']


@pytest.mark.parametrize('form', ['{}/out/', '{}/link'])
def test_folder_by_another_name_is_replaced(tmp_path, form):
    """A slash at the end; a link, whose folder stays as it is."""
    (tmp_path / 'real').mkdir()
    (tmp_path / 'real' / 'x').write_text('old')
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    for text in ('first', 'second'):
        with replace_when_complete(form.format(tmp_path)) as unfinished:
            os.makedirs(unfinished)
            with open(f'{unfinished}/x', 'w') as file:
                file.write(text)
    assert (tmp_path / form.format(tmp_path) / 'x').read_text() == 'second'
    assert (tmp_path / 'real' / 'x').read_text() == 'old'
    assert {entry.name for entry in tmp_path.iterdir()} <= {'out', 'link', 'real'}


def test_folder_with_more_than_a_result_is_not_replaced(tmp_path):
    check_replaceable(tmp_path / 'absent', ['*.safetensors'])
    check_replaceable(tmp_path, ['*.safetensors'])
    (tmp_path / 'a.safetensors').write_text('')
    check_replaceable(tmp_path, ['*.safetensors'])
    save(tmp_path / 'iter_2.pth')
    with pytest.raises(ConfigError, match='iter_2.pth in it would be lost'):
        check_replaceable(tmp_path, ['*.safetensors'])
    with pytest.raises(ConfigError, match='is a file'):
        check_replaceable(tmp_path / 'iter_2.pth', ['*'])


def test_link_to_nothing_is_passed_over(tmp_path):
    save(tmp_path / 'iter_2.pth')
    (tmp_path / 'iter_9.pth').symlink_to(tmp_path / 'gone.pth')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00'])
def test_damaged_pointer_is_passed_over(tmp_path, content):
    save(tmp_path / 'iter_2.pth')
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_pointer_decides(tmp_path):
    for step in (2, 10):
        save(tmp_path / f'iter_{step}.pth')
    assert find_resumable(tmp_path).endswith('iter_10.pth')
    write_pointer(tmp_path, '/somewhere/else/iter_2.pth')  # the work dir was moved
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')


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
    save(folder / 'mp_rank_00_model_states.pt')
    part = save(folder / 'zero_pp_rank_1_mp_rank_00_optim_states.pt')
    verify_checkpoint(folder)
    cut(part)
    with pytest.raises(CheckpointError, match='rank_1.*truncated'):
        verify_checkpoint(folder)
