"""Reading single files out of archives whose sha256 was compared."""

import hashlib
import tarfile

import pytest

from pixelsail_mm.downloads import check_sha256, read_members
from pixelsail_mm.downloads.archives import extract_members, join_chunks
from pixelsail_mm.errors import ArchiveError

BOTH = pytest.mark.parametrize('name', ['x.tar.gz', 'x.whl'])


@BOTH
def test_reading_members(pack, name):
    path = pack({'a/b/x.json': {}, 'a/b/y.txt': b'', 'a/b/c/z.json': {}, 'a/w.json': {}}, name=name)
    assert read_members(path, 'a/b', ('.json',)) == {'x.json': b'{}'}
    assert read_members(path, 'a/b', ('.jpg',)) == {}


def test_a_wrong_checksum_names_both(tmp_path):
    (tmp_path / 'x').write_bytes(b'other')
    digest = hashlib.sha256(b'other').hexdigest()
    check_sha256(tmp_path / 'x', digest)
    with pytest.raises(ArchiveError, match=f'its sha256 is {digest}, expected 00ff'):
        check_sha256(tmp_path / 'x', '00ff')


@BOTH
def test_members_are_written_to_the_files_named(pack, tmp_path, name):
    content = bytes(3 << 20)
    path = pack({'a/x': content, '../evil': b'1', 'a/y': b'2'}, name=name)
    inner = tmp_path / 'inner'
    inner.mkdir()
    extract_members(path, {'a/x': inner / 'x'})
    assert (inner / 'x').read_bytes() == content
    assert not list(tmp_path.rglob('*evil*'))


@pytest.mark.parametrize(
    'kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_only_plain_files_of_a_tar_are_read(pack, kind):
    member = tarfile.TarInfo('a/x.json')
    member.type, member.linkname = kind, 'w.json'
    path = pack({'a/w.json': {}}, member)
    assert read_members(path, 'a', ('.json',)) == {'w.json': b'{}'}


def test_chunks_are_joined_in_their_places(pack, tmp_path):
    """Listed and packed out of order."""
    parts = {hashlib.sha256(part).hexdigest(): part for part in (b'123', b'45')}
    first, second = parts
    listing = dict(
        f=dict(size=5, chunks=[dict(hash=second, offsets=[3, 5]), dict(hash=first, offsets=[0, 3])])
    )
    files = {f'd/{name}': part for name, part in reversed(parts.items())}
    join_chunks(pack({**files, 'd/list.json': listing}), 'd/list.json', 'f', tmp_path / 'f')
    assert (tmp_path / 'f').read_bytes() == b'12345'
