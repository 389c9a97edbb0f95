"""Fetching a file: only what is complete and right gets its name; places in turn, full disks."""

import hashlib
import resource

import pytest

from pixelsail_mm.downloads import transfer
from pixelsail_mm.downloads.transfer import fetch_first
from pixelsail_mm.errors import DownloadError, OfflineError, StorageError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def get(server, tmp_path):
    """Download CONTENT from the first of these addresses that has it."""
    server.files['/f'] = CONTENT

    def get(*addresses):
        places = [
            (address, lambda address=address: address)
            for address in addresses or [f'{server.url}/f']
        ]
        return fetch_first(places, tmp_path / 'to/f', SHA256, None, 'Ask').read_bytes()

    return get


def left(tmp_path):
    """What lies in the folder of the file."""
    return [path.name for path in (tmp_path / 'to').iterdir()]


def test_a_connection_that_breaks_off_is_tried_again(server, get, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, '_RETRIES', 1)
    server.cuts = 1
    assert get() == CONTENT
    assert [path for path, _ in server.asked] == ['/f', '/f'] and left(tmp_path) == ['f']


@pytest.mark.parametrize('lengths', [True, False], ids=['length', 'no length'])
def test_what_is_cut_short_is_never_taken_for_complete(server, get, tmp_path, lengths):
    server.cuts, server.lengths = 1, lengths
    with pytest.raises(DownloadError, match='f could not be downloaded from .*Ask, and pass'):
        get()
    assert left(tmp_path) == []
    assert get() == CONTENT


def test_a_file_that_is_here_and_right_is_not_asked_for(server, get, tmp_path):
    (tmp_path / 'to').mkdir()
    (tmp_path / 'to/f').write_bytes(CONTENT)
    assert get() == CONTENT and server.asked == []
    (tmp_path / 'to/f').write_bytes(CONTENT[:-1])
    assert get() == CONTENT and len(server.asked) == 1


def test_places_are_asked_in_turn_and_named_with_their_reasons(server, get, tmp_path):
    server.files['/other'] = b'other'
    local = tmp_path / 'local'
    local.write_bytes(CONTENT)
    wrong = [
        f'{server.url}/gone',
        f'{server.url}/other',
        'http://127.0.0.1:1/f',
        'no address',
        'file:///no/such/file',
    ]
    with pytest.raises(
        DownloadError,
        match=r'/gone \(404 .*/other \(SHA256 hash .* does not match '
        r'.*:1/f \(.*refused\).*no address \(.*/file \(.*No such file',
    ) as caught:
        get(*wrong)
    assert not isinstance(caught.value, OfflineError) and left(tmp_path) == []
    assert get(*wrong, local.as_uri()) == CONTENT


def test_no_place_in_reach_is_an_error_of_its_own(get):
    with pytest.raises(OfflineError, match='refused'):
        get('http://127.0.0.1:1/f')


def test_a_compressed_transfer_stays_as_it_is(server, get):
    """Some servers send archives with the header of a compressed page."""
    get()
    assert server.encodings[-1] == 'identity'


def test_a_password_stays_on_its_host_and_out_of_messages(server, get, tmp_path):
    """Mirrors hand their files to another host; within a host the password goes along."""
    other = server.url.replace('127.0.0.1', 'localhost')
    server.redirects = {'/here': '/there', '/there': f'{other}/f'}
    with_login = server.url.replace('//', '//me:secret@')
    assert get(f'{with_login}/here') == CONTENT
    login = 'Basic bWU6c2VjcmV0'
    assert [(host.partition(':')[0], seen) for host, seen in server.logins] == [
        ('127.0.0.1', login),
        ('127.0.0.1', login),
        ('localhost', None),
    ]
    (tmp_path / 'to/f').unlink()
    with pytest.raises(DownloadError, match='127.0.0.1.*404') as caught:
        get(f'{with_login}/gone')
    assert 'secret' not in str(caught.value)


@pytest.mark.parametrize('address', ['ftp://127.0.0.1:1/f', 'file:///etc/hostname'])
def test_redirects_to_other_kinds_of_addresses_are_not_followed(server, get, tmp_path, address):
    server.redirects = {'/f': address}
    with pytest.raises(DownloadError, match='No connection adapters'):
        get()
    assert left(tmp_path) == []


@pytest.fixture
def small_disk():
    """Files of this process cannot grow beyond 4,096 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_not_taken_for_the_network(get, tmp_path, small_disk):
    with pytest.raises(StorageError, match=r'f cannot be written \(File too large\)'):
        get()
    assert left(tmp_path) == []


def test_a_target_that_cannot_be_a_file(get, tmp_path):
    (tmp_path / 'to/f').mkdir(parents=True)
    with pytest.raises(StorageError, match='f cannot be written'):
        get()
