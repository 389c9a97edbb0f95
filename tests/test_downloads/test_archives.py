"""Reading single files out of archives that may be damaged, changed or malicious."""

import hashlib
import os
import stat
import tarfile
import zipfile

import pytest

from pixelsail_mm.downloads import ArchiveError, archives, check_sha256, read_members
from pixelsail_mm.downloads.archives import extract_members, join_chunks

BOTH = pytest.mark.parametrize('name', ['x.tar.gz', 'x.whl'])


@BOTH
def test_reading_members(pack, name):
    path = pack({'a/b/x.json': {}, 'a/b/y.txt': b'', 'a/b/c/z.json': {}, 'a/w.json': {}},
                name=name)
    assert read_members(path, 'a/b', ('.json', )) == {'x.json': b'{}'}
    with pytest.raises(ArchiveError, match='it has no .jpg files in a/b'):
        read_members(path, 'a/b', ('.jpg', ))


def test_a_wrong_checksum_names_both(tmp_path):
    (tmp_path / 'x').write_bytes(b'other')
    digest = hashlib.sha256(b'other').hexdigest()
    check_sha256(tmp_path / 'x', digest)
    with pytest.raises(ArchiveError, match=f'its sha256 is {digest}, expected 00ff'):
        check_sha256(tmp_path / 'x', '00ff')


@BOTH
@pytest.mark.parametrize('content', [b'', b'no archive', b'\x1f\x8b\x08\x00broken', b'PK\x03\x04'])
def test_no_archive(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f'{name}: (not a readable|it has no)'):
        read_members(path, 'a', ('.json', ))


@BOTH
def test_a_cut_off_archive(pack, name, tmp_path):
    path = pack({'a/x.json': os.urandom(5000)}, name=name)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ArchiveError, match='not a readable (tar|zip) archive'):
        extract_members(path, {'a/x.json': tmp_path / 'x'}, {'a/x.json': 5000})


def test_a_changed_byte_in_a_zip(pack, tmp_path):
    path = pack({'a/x': bytes(5000)}, name='x.whl')
    content = bytearray(path.read_bytes())
    content[40] ^= 0xff
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match='not a readable zip archive'):
        extract_members(path, {'a/x': tmp_path / 'x'}, {'a/x': 5000})


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                                  tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_plain_files_of_a_tar_are_read(pack, kind):
    member = tarfile.TarInfo('a/x.json')
    member.type, member.linkname = kind, 'w.json'
    path = pack({'a/w.json': {}}, member)
    with pytest.raises(ArchiveError, match="'a/x.json' is not a plain file"):
        read_members(path, 'a', ('.json', ))


def test_links_of_a_zip_are_not_read(pack, tmp_path):
    link = zipfile.ZipInfo('a/x')
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = pack({}, link, name='x.whl')
    with pytest.raises(ArchiveError, match="'a/x' is not a plain file"):
        extract_members(path, {'a/x': tmp_path / 'x'}, {'a/x': 0})


@BOTH
@pytest.mark.parametrize('evil', ['../evil', '/evil', 'a/../../evil', '..\\evil'])
def test_members_that_lead_out_of_the_archive_are_refused(pack, tmp_path, name, evil):
    path = pack({'a/x': b'12'}, *([tarfile.TarInfo(evil)] if name.endswith('gz') else []),
                name=name)
    if name == 'x.whl':
        path = pack({evil: b'', 'a/x': b'12'}, name=name)
    with pytest.raises(ArchiveError, match='leads out of the archive'):
        extract_members(path, {'a/x': tmp_path / 'x'}, {'a/x': 2})
    assert not list(tmp_path.rglob('*evil*'))


@BOTH
def test_members_of_another_size_are_refused(pack, tmp_path, name, monkeypatch):
    path = pack({'a/x.json': bytes(11)}, name=name)
    for size, reason in ((10, 'not a plain file of at most 10 bytes'), (12, 'has not the 12')):
        with pytest.raises(ArchiveError, match=reason):
            extract_members(path, {'a/x.json': tmp_path / 'x'}, {'a/x.json': size})
    monkeypatch.setattr(archives, '_MAX_SMALL', 10)
    with pytest.raises(ArchiveError, match='at most 10 bytes'):
        read_members(path, 'a', ('.json', ))


def test_a_missing_member_is_named(pack, tmp_path):
    with pytest.raises(ArchiveError, match='it lacks a/y; is it the right archive'):
        extract_members(pack({'a/x': b''}), {'a/y': tmp_path / 'y'}, {'a/y': 1})


def chunked(**changes):
    """Files of an archive whose ``f`` is b'12345' in two chunks, listed out of order."""
    parts = {hashlib.sha256(part).hexdigest(): part for part in (b'123', b'45')}
    first, second = parts
    listing = dict(f=dict(size=5, chunks=[dict(hash=second, offsets=[3, 5]),
                                          dict(hash=first, offsets=[0, 3])]) | changes)
    return {**{f'd/{name}': part for name, part in parts.items()}, 'd/list.json': listing}


def test_chunks_are_joined_in_their_places(pack, tmp_path):
    join_chunks(pack(chunked()), 'd/list.json', 'f', tmp_path / 'f')
    assert (tmp_path / 'f').read_bytes() == b'12345'


@pytest.mark.parametrize(('change', 'reason'), [
    (lambda files: files['d/list.json'].clear(), 'does not list the chunks of f'),
    (lambda files: files.pop('d/list.json'), 'no .json files in d'),
    (lambda files: files.update({name: b'xyz' for name in files if len(files[name]) == 3}),
     'not that of its name'),
    (lambda files: files.update({name: b'' for name in files if len(files[name]) == 3}),
     'has not the 3 bytes'),
    (lambda files: files.pop(next(iter(files))), 'it lacks d/'),
    (lambda files: files['d/list.json']['f'].update(size=6), 'do not make up its 6 bytes'),
    (lambda files: files['d/list.json']['f']['chunks'].pop(), 'do not make up its 5 bytes'),
], ids=['no entry', 'no listing', 'other content', 'shorter', 'missing', 'size', 'gap'])
def test_chunks_that_do_not_fit_are_refused(pack, tmp_path, change, reason):
    files = chunked()
    change(files)
    with pytest.raises(ArchiveError, match=reason):
        join_chunks(pack(files), 'd/list.json', 'f', tmp_path / 'f')
