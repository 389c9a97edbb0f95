"""Finding the archive of an npm package, npm's settings, errors."""

import json

import pytest

from pixelsail_mm.downloads import DownloadError, OfflineError, StorageError, npm_registry


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Download with these settings of npm; the package is @a/b 1.0."""
    dist = dict(tarball='https://registry.example/@a/b/-/b-1.0.tgz')
    server.files.update({
        '/npm/@a%2Fb': json.dumps(dict(versions={'1.0': dict(dist=dist)})).encode(),
        '/npm/@a/b/-/b-1.0.tgz': b'archive', '/odd/@a%2Fb': b'<html>',
        '/bare/@a%2Fb': b'{"versions": {"1.0": {}}}'})

    def fetch(version='1.0', **settings):
        monkeypatch.setattr(npm_registry, 'npm_settings', lambda: settings)
        return npm_registry.download('@a/b', version, tmp_path, 'b.tgz').read_bytes()

    return fetch


def test_the_registry_in_use_takes_the_place_of_the_default_host(server, fetch):
    assert fetch(registry=f'{server.url}/npm/') == b'archive'


def test_a_scope_can_have_its_own_registry(server, fetch):
    assert fetch(**{'registry': f'{server.url}/odd', '@a:registry': f'{server.url}/npm'}) == (
        b'archive')


@pytest.mark.parametrize(('path', 'version', 'reason'), [
    ('npm', '2.0', 'it has no version 2.0'), ('odd', '1.0', 'no listing of a package'),
    ('bare', '1.0', 'no listing of a package'),
    ('gone', '1.0', '404')])
def test_a_registry_without_it(server, fetch, path, version, reason):
    with pytest.raises(DownloadError, match=rf'{reason}.*npm pack @a/b@{version}.*--archive') as e:
        fetch(version, registry=f'{server.url}/{path}')
    assert not isinstance(e.value, OfflineError)


def test_offline(fetch):
    with pytest.raises(OfflineError, match=r'127.0.0.1:1 \(.*refused.*--archive'):
        fetch(registry='http://me:secret@127.0.0.1:1')


def test_a_full_disk_is_not_taken_for_the_network(server, fetch, tmp_path):
    (tmp_path / 'b.tgz.part').mkdir()
    with pytest.raises(StorageError, match='b.tgz.part cannot be written'):
        fetch(registry=f'{server.url}/npm')


def test_settings_without_npm(tmp_path, monkeypatch):
    (tmp_path / '.npmrc').write_text(
        '; comment\nregistry = "https://a/${PLACE}"\n@x:registry=https://b/\n'
        '//a/:_authToken=secret\ncafile=/c.pem\n')
    monkeypatch.setattr(npm_registry.shutil, 'which', lambda name: None)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('PLACE', 'npm')
    for name in ('npm_config_registry', 'NPM_CONFIG_REGISTRY'):
        monkeypatch.delenv(name, raising=False)
    settings = npm_registry.npm_settings()
    assert settings['registry'] == 'https://a/npm' and settings['@x:registry'] == 'https://b/'
    assert settings['cafile'] == '/c.pem' and 'secret' not in str(settings)
    monkeypatch.setenv('NPM_CONFIG_REGISTRY', 'https://d')
    assert npm_registry.npm_settings()['registry'] == 'https://d'
