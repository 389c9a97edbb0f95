"""Repositories of the hub, from a stand-in that speaks the three kinds of requests needed."""

import hashlib
import json

import huggingface_hub
import pytest
from huggingface_hub import utils

from pixelsail_mm.downloads import hub as hub_module
from pixelsail_mm.downloads.hub import download_repository, read_record, wrong_files
from pixelsail_mm.errors import ArchiveError, DownloadError, OfflineError

# The second is the name in version 0.
reset_sessions = getattr(utils, 'close_session', None) or utils.reset_sessions
COMMIT = 'c0ffee' + '0' * 34
REPO = {
    'config.json': b'{"a": 1}',
    'model.safetensors': bytes(range(256)) * 2000,
    'pytorch_model.bin': b'pickle',
    'modeling.py': b'code',
}
LARGE = ('.safetensors', '.bin')


@pytest.fixture
def hub(server, monkeypatch):
    """Stand-in for the hub with repository o/r; gives a function that downloads it."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    # What a broken connection leaves of a chunk is lost; those of the library have 10 MiB.
    monkeypatch.setattr(huggingface_hub.constants, 'DOWNLOAD_CHUNK_SIZE', 1000)
    monkeypatch.setenv('HF_HUB_DISABLE_PROGRESS_BARS', '1')
    reset_sessions()
    server.repo, server.lies = dict(REPO), {}

    def publish():
        siblings, tree = [], []
        for name, content in server.repo.items():
            digest = hashlib.sha256(server.lies.get(name, content)).hexdigest()
            blob = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
            lfs = dict(sha256=digest, size=len(content), pointerSize=1)
            more = dict(size=len(content), **dict(lfs=lfs) if name.endswith(LARGE) else {})
            siblings.append(dict(more, rfilename=name, blobId=blob))
            # huggingface_hub 2 asks for this list, in which a large file's sum is its `oid`.
            if 'lfs' in more:
                more['lfs'] = dict(lfs, oid=digest)
            tree.append(dict(more, type='file', path=name, oid=blob))
            path = f'/o/r/resolve/{COMMIT}/{name}'
            server.files[path] = content
            server.headers[path] = {'X-Repo-Commit': COMMIT, 'ETag': f'"{digest}"'}
        info = json.dumps(dict(id='o/r', sha=COMMIT, siblings=siblings)).encode()
        server.files['/api/models/o/r/revision/main'] = info
        server.files[f'/api/models/o/r/revision/{COMMIT}'] = info
        server.files[f'/api/models/o/r/tree/{COMMIT}'] = json.dumps(tree).encode()
        server.asked.clear()

    def download(folder, repo='o/r', **options):
        publish()
        return download_repository(repo, folder, endpoint=server.url, **options)

    yield download
    reset_sessions()


def test_safetensors_and_settings_are_fetched_and_nothing_else(hub, tmp_path):
    record = hub(tmp_path / 'r')
    assert {path.name for path in (tmp_path / 'r').iterdir() if path.is_file()} == {
        'config.json',
        'model.safetensors',
        'download.json',
    }
    assert (tmp_path / 'r/model.safetensors').read_bytes() == REPO['model.safetensors']
    assert record['revision'] == COMMIT and read_record(tmp_path / 'r') == record
    assert 'sha256' in record['files']['model.safetensors']
    assert wrong_files(tmp_path / 'r', record) == []
    (tmp_path / 'r/config.json').write_bytes(b'{"a": 2}')
    assert wrong_files(tmp_path / 'r', record) == ['config.json'], "git's own checksum"


def test_further_files_on_request(hub, tmp_path):
    assert 'modeling.py' in hub(tmp_path, more=['*.py'])['files']


def test_a_connection_that_breaks_off_is_continued(hub, server, tmp_path):
    server.cuts, server.cut_above = 2, 1000
    hub(tmp_path)
    assert (tmp_path / 'model.safetensors').read_bytes() == REPO['model.safetensors']
    assert [wanted for path, wanted in server.asked if path.endswith('.safetensors')] == [
        None,
        'bytes=256000-',
        'bytes=384000-',
    ]


def test_it_gives_up_and_goes_on_in_the_next_run(hub, server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, '_TRIES', 1)
    server.cuts, server.cut_above = 1000, 1000
    with pytest.raises(DownloadError, match='kept breaking off.*goes on where it stopped'):
        hub(tmp_path)
    assert not (tmp_path / 'model.safetensors').exists()
    server.cuts = 0
    hub(tmp_path)
    [wanted] = [wanted for path, wanted in server.asked if path.endswith('.safetensors')]
    if huggingface_hub.__version__.startswith('0.'):
        # At least half of it was there; how much more depends on the tries of huggingface_hub.
        assert int(wanted.removeprefix('bytes=').rstrip('-')) >= 256000
    else:  # complete files stay, one that broke off begins again
        assert wanted is None


def test_a_file_that_is_not_what_the_hub_lists_is_removed(hub, server, tmp_path):
    server.lies['model.safetensors'] = b'another one'
    with pytest.raises(ArchiveError, match='model.safetensors of o/r differ from the sums'):
        hub(tmp_path)
    assert not (tmp_path / 'model.safetensors').exists() and read_record(tmp_path) is None
    server.lies.clear()
    hub(tmp_path)


@pytest.mark.parametrize('name', ['../evil.json', '/evil.json', 'a/../../evil.json'])
def test_names_that_lead_out_of_the_folder_are_refused(hub, server, tmp_path, name):
    server.repo[name] = b'{}'
    with pytest.raises(ArchiveError, match='evil.json. leads out of the repository'):
        hub(tmp_path / 'r')
    assert not list(tmp_path.rglob('*evil*'))


def test_a_record_cut_short_is_none(hub, tmp_path):
    hub(tmp_path)
    (tmp_path / 'download.json').write_text('{"repo": ')
    assert read_record(tmp_path) is None


def test_pickles_only(hub, server, tmp_path):
    del server.repo['model.safetensors']
    with pytest.raises(DownloadError, match=r"no safetensors, only \['pytorch_model.bin'\]"):
        hub(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_hub_does_not_have(hub, server, tmp_path):
    for repo, code, reason in (
        ('o/gone', 'RepoNotFound', 'does not exist or asks for a login'),
        ('o/r', 'RevisionNotFound', 'has no revision v9.*--revision'),
    ):
        path = f'/api/models/{repo}/revision/v9'
        server.errors = {path: code}
        with pytest.raises(DownloadError, match=reason) as caught:
            hub(tmp_path, repo, revision='v9')
        assert not isinstance(caught.value, OfflineError)


def test_offline_says_what_to_do(hub, tmp_path):
    with pytest.raises(
        OfflineError,
        match=r'127.0.0.1:1 cannot be reached \(.*refused\).*'
        r'hf download o/r --revision main.*HF_ENDPOINT',
    ):
        download_repository('o/r', tmp_path / 'r', endpoint='http://127.0.0.1:1')


def test_offline_by_choice(hub, server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    reset_sessions()
    with pytest.raises(OfflineError, match=r'\(HF_HUB_OFFLINE is set\)'):
        hub(tmp_path)
    assert server.asked == []
