import os

import pytest

from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    check_replaceable,
    move_into_place,
    replace_when_complete,
    tidy_leftovers,
)
from pixelsail_mm.errors import ConfigError


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
    (tmp_path / 'iter_2.pth').write_text('')
    with pytest.raises(ConfigError, match='iter_2.pth in it would be lost'):
        check_replaceable(tmp_path, ['*.safetensors'])
    with pytest.raises(ConfigError, match='is a file'):
        check_replaceable(tmp_path / 'iter_2.pth', ['*'])


def test_leftovers_of_a_killed_run_are_cleaned(tmp_path):
    for name in (
        'iter_4.pth.unfinished',
        'iter_2.pth.outdated',
        'iter_2.pth',
        'best_a.pth.outdated',
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x').write_text(name)
    (tmp_path / 'last_checkpoint.unfinished').write_text('half')
    (tmp_path / 'hf.unfinished').mkdir()  # somebody exports a model to this folder
    said = tidy_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ['best_a.pth', 'hf.unfinished', 'iter_2.pth']
    assert (tmp_path / 'best_a.pth/x').read_text() == 'best_a.pth.outdated'
    assert (tmp_path / 'iter_2.pth/x').read_text() == 'iter_2.pth'
    assert said == (
        f'left over by a killed run in {tmp_path}: removed 3 (iter_2.pth.outdated, '
        'iter_4.pth.unfinished, last_checkpoint.unfinished); restored 1 (best_a.pth)'
    )
    assert tidy_leftovers(tmp_path) == ''
