"""Going on after an interruption, and files of another size than expected."""

import pytest

from pixelsail_mm.downloads import transfer
from pixelsail_mm.downloads.transfer import fetch

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def get(server, tmp_path):
    """Download CONTENT from the server."""
    server.files['/f'] = CONTENT

    def get(**options):
        return fetch(f'{server.url}/f', tmp_path / 'f', **options).read_bytes()

    return get


def test_a_connection_that_breaks_off_is_continued(server, get, tmp_path):
    server.cuts = 3
    assert get() == CONTENT
    asked = [wanted for _, wanted in server.asked]
    assert asked == [None, 'bytes=5120-', 'bytes=7680-', 'bytes=8960-']
    assert [path.name for path in tmp_path.iterdir()] == ['f']


def test_what_an_earlier_run_left_is_continued(server, get, tmp_path):
    (tmp_path / 'f.part').write_bytes(CONTENT[:300])
    assert get() == CONTENT
    assert server.asked == [('/f', 'bytes=300-')]


def test_a_server_without_ranges_sends_everything_anew(server, get, tmp_path):
    server.ranges = False
    (tmp_path / 'f.part').write_bytes(b'other' * 100)
    assert get() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(get, tmp_path):
    (tmp_path / 'f.part').write_bytes(bytes(len(CONTENT) + 5))
    assert get() == CONTENT, 'the server answers 416'
    (tmp_path / 'f.part').write_bytes(bytes(len(CONTENT) + 5))
    assert get(size=len(CONTENT)) == CONTENT


def test_a_complete_part_is_not_asked_for_again(server, get, tmp_path):
    (tmp_path / 'f.part').write_bytes(CONTENT)
    assert get(size=len(CONTENT)) == CONTENT
    assert server.asked == []


def test_it_gives_up_when_nothing_arrives_any_more(server, get, tmp_path):
    """Every answer is half of the rest, until half of one byte is none."""
    server.cuts = 10**6
    with pytest.raises(ConnectionError, match='ended after 10,239 of 10,240 bytes'):
        get()
    assert (tmp_path / 'f.part').read_bytes() == CONTENT[:-1]
    server.cuts = 0
    assert get() == CONTENT


def test_another_size_ends_it_before_it_begins(get, tmp_path):
    with pytest.raises(ValueError, match='it has 10,240 bytes there, expected 7'):
        get(size=7)
    assert list(tmp_path.iterdir()) == []


def test_endless_files_are_cut_off(get, monkeypatch):
    monkeypatch.setattr(transfer, 'MAX_DOWNLOAD', 1000)
    with pytest.raises(ValueError, match='larger than'):
        get()
