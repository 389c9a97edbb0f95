"""Every reader on valid files with one defect."""

import shutil

import pytest
from hypothesis import note

from tests.fuzz.cases import fuzz, outcome
from tests.fuzz.reader_files import Format, names


@pytest.fixture(scope='module', params=names())
def form(request, public_layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp('form')
    yield Format(request.param, public_layout[1], folder)
    shutil.rmtree(folder)


@fuzz
def test_a_defect_is_named_and_harms_nothing_else(form, seed):
    read, said, others = form.damaged(seed)
    note(said)
    result = outcome(read, str(form.root), str(form.folder))
    if not isinstance(result, Exception):
        found = form.records(result)
        lost = [record for record in others if record not in found]
        assert not lost, f'the defect changed another sample: {lost[0]:.500}'
