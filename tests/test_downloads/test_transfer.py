"""Going on after an interruption, files of another size than expected, redirects, full disks."""

import resource

import pytest

from pixelsail_mm.downloads import StorageError, transfer
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


def test_a_cut_is_noticed_without_an_announced_length(server, get):
    server.cuts, server.lengths = 1, False
    assert get(size=len(CONTENT)) == CONTENT


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


def test_a_password_stays_on_its_host(server, tmp_path):
    """Mirrors hand their files to another host; within a host the password goes along."""
    server.files['/f'] = CONTENT
    other = server.url.replace('127.0.0.1', 'localhost')
    server.redirects = {'/here': '/there', '/there': f'{other}/f'}
    with_login = server.url.replace('//', '//me:secret@')
    assert fetch(f'{with_login}/here', tmp_path / 'f').read_bytes() == CONTENT
    login = 'Basic bWU6c2VjcmV0'
    assert [(host.partition(':')[0], seen) for host, seen in server.logins] == [
        ('127.0.0.1', login), ('127.0.0.1', login), ('localhost', None)]


@pytest.mark.parametrize('address', ['ftp://127.0.0.1:1/f', 'file:///etc/hostname'])
def test_redirects_to_other_kinds_of_addresses_are_not_followed(server, tmp_path, address):
    server.redirects = {'/f': address}
    with pytest.raises(OSError, match='not allowed'):
        fetch(f'{server.url}/f', tmp_path / 'f')
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk():
    """Files of this process cannot grow beyond 4,096 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_not_taken_for_the_network(get, tmp_path, small_disk):
    with pytest.raises(StorageError, match=r'f.part cannot be written \(File too large\)'):
        get()
    assert (tmp_path / 'f.part').stat().st_size == 4096, 'room for the rest, and it goes on'


def test_a_target_that_cannot_be_a_file(get, tmp_path):
    (tmp_path / 'f').mkdir()
    with pytest.raises(StorageError, match='f cannot be written'):
        get()
