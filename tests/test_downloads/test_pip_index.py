"""Finding and fetching a file in a package index: its page, pip's settings, errors."""

import base64
import hashlib
import http.server
import os
import threading
from functools import partial

import pytest

from pixelsail_mm.downloads import pip_index, transfer
from pixelsail_mm.errors import DownloadError, OfflineError, StorageError

NAME = 'labelme-6.3.1.tar.gz'
SHA256 = hashlib.sha256(b'archive' * 1000).hexdigest()
HTML = (
    f'<!DOCTYPE html><html><body><a href="../../files/other-1.0.tar.gz">other</a>'
    f'<a data-x="1" href="../../files/{NAME}#sha256=00">{NAME}</a></body></html>'
)


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index on this machine; ``/private`` wants a password."""

    def do_GET(self):
        if self.path.startswith('/private/'):
            expected = 'Basic ' + base64.b64encode(b'me:pass word').decode()
            if self.headers.get('Authorization') != expected:
                self.send_error(401)
                return
            self.path = self.path.removeprefix('/private')
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Address of a small package index."""
    root = tmp_path / 'index'
    for folder, page in (('simple/labelme', HTML), ('empty/labelme', '<html></html>')):
        (root / folder).mkdir(parents=True)
        (root / folder / 'index.html').write_text(page)
    (root / 'files').mkdir()
    (root / 'files' / NAME).write_bytes(b'archive' * 1000)
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(transfer, '_RETRIES', 0)
    with http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Index, directory=str(root))
    ) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Download with these settings of pip."""

    def fetch(index_url, extra=''):
        monkeypatch.setattr(
            pip_index, 'pip_settings', lambda: {'index-url': index_url, 'extra-index-url': extra}
        )
        return pip_index.download('labelme', NAME, tmp_path, SHA256).read_bytes()

    return fetch


@pytest.mark.parametrize('path', ['/simple', '/simple/'])
def test_address_of_an_index(index, fetch, path):
    assert fetch(index + path) == b'archive' * 1000


def test_a_password_in_the_address(index, fetch):
    """Page and file need it: the link is relative."""
    with pytest.raises(DownloadError, match='401'):
        fetch(f'{index}/private/simple')
    address = index.replace('http://', 'http://me:pass%20word@')
    assert fetch(f'{address}/private/simple') == b'archive' * 1000


def test_a_folder_as_index(index, fetch, tmp_path):
    assert fetch((tmp_path / 'index/simple').as_uri()) == b'archive' * 1000


def test_the_second_index_is_asked(index, fetch):
    for first in (
        f'{index}/empty',
        f'{index}/gone',
        'http://127.0.0.1:1/simple',
        'no address',
        'file:///no/such/folder',
    ):
        assert fetch(first, f'{index}/simple') == b'archive' * 1000


def test_offline(fetch):
    with pytest.raises(
        OfflineError,
        match=rf'{NAME} could not be downloaded from http://127.0.0.1'
        r':1/simple \(.*refused.*--archive',
    ):
        fetch('http://127.0.0.1:1/simple')


def test_a_missing_file_is_another_error_than_no_network(index, fetch):
    for path, reason in (('empty', f'it has no {NAME}'), ('gone', '404')):
        with pytest.raises(DownloadError, match=reason) as caught:
            fetch(f'{index}/{path}')
        assert not isinstance(caught.value, OfflineError)


def test_another_index_does_not_help_against_a_full_disk(index, fetch, tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(StorageError, match='cannot be written'):
        fetch(f'{index}/simple', f'{index}/simple')


def test_passwords_are_not_shown(index, fetch):
    with pytest.raises(DownloadError) as caught:
        fetch(f'{index}/private/empty'.replace('//', '//me:secret@', 1))
    assert '127.0.0.1' in str(caught.value) and 'secret' not in str(caught.value)


def test_settings_of_pip(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith('PIP_')]:
        monkeypatch.delenv(name)
    config = tmp_path / 'pip.conf'
    config.write_text(
        '[global]\nindex-url = https://a/simple\ncert = /a.pem\n'
        'extra-index-url =\n    https://b/simple\n    https://c/simple\n'
        '[download]\nindex-url = https://d/simple\n'
    )
    monkeypatch.setenv('PIP_CONFIG_FILE', str(config))
    monkeypatch.setenv('PIP_CERT', '/b.pem')
    settings = pip_index.pip_settings()
    assert settings['index-url'] == 'https://d/simple', 'the command goes before [global]'
    assert settings['cert'] == '/b.pem', 'the environment goes before the files'
    assert settings['extra-index-url'].split() == ['https://b/simple', 'https://c/simple']
    monkeypatch.setenv('PIP_INDEX_URL', 'https://e/simple')
    assert pip_index.pip_settings()['index-url'] == 'https://e/simple'


def test_without_pip_the_environment_still_counts(monkeypatch):
    monkeypatch.setattr(pip_index.sys, 'executable', '/bin/false')
    monkeypatch.setenv('PIP_INDEX_URL', 'https://e/simple')
    assert pip_index.pip_settings()['index-url'] == 'https://e/simple'


def test_the_default_index_is_the_one_that_pip_names():
    address = pip_index.default_index()
    assert address.startswith('https://') and address.endswith('/simple')


def test_without_pip_no_index_is_made_up(monkeypatch, tmp_path):
    monkeypatch.setattr(pip_index, 'pip_settings', dict)
    monkeypatch.setattr(pip_index.sys, 'executable', 'false')
    with pytest.raises(OfflineError, match='no package index is known'):
        pip_index.download('labelme', NAME, tmp_path, SHA256)
