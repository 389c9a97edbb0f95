"""Our writer, read by the library."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixelsail_mm.checkpoints.formats.safetensors_files import read_safetensors, save_weights
from pixelsail_mm.errors import CheckpointError

STATE = dict(
    flag=torch.tensor([True, False, True]),
    half=torch.randn(3, 5).bfloat16(),
    number=torch.tensor(3),
    empty=torch.zeros(0, 4),
    wide=torch.randn(7).double(),
    turned=torch.randn(4, 6).t(),
    bytes=torch.arange(5, dtype=torch.uint8),
)


def test_library_reads_the_same(tmp_path):
    save_weights(STATE, tmp_path / 'a.safetensors', dict(note='x'))
    read = load_file(tmp_path / 'a.safetensors')
    assert read.keys() == STATE.keys()
    for key, value in STATE.items():
        assert read[key].dtype == value.dtype and torch.equal(read[key], value), key
    with safe_open(tmp_path / 'a.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt', 'note': 'x'}


def test_precision_changes_for_fractions_only(tmp_path):
    save_weights(STATE, tmp_path / 'a.safetensors', dtype=torch.float16)
    read = load_file(tmp_path / 'a.safetensors')
    assert read['number'].dtype == torch.int64
    assert torch.equal(read['turned'], STATE['turned'].half())


def test_views_that_begin_alike_are_not_aliases(tmp_path):
    whole = torch.randn(6, 2)
    save_weights(dict(whole=whole, part=whole[:3], again=whole), tmp_path / 'a.safetensors')
    state, _ = read_safetensors(tmp_path / 'a.safetensors')
    assert torch.equal(state['part'], whole[:3]) and state['again'] is state['whole']
    assert set(load_file(tmp_path / 'a.safetensors')) == {'whole', 'part'}


@pytest.mark.parametrize(
    'aliases', ['{', '["a"]', '{"b": "absent"}', '{"b": ["a"]}', '[' * 100_000], ids=range(5)
)
def test_damaged_list_of_aliases_is_named(tmp_path, aliases):
    save_file(dict(a=torch.ones(2)), tmp_path / 'a.safetensors', dict(aliases=aliases))
    with pytest.raises(CheckpointError, match="a.safetensors: .* entry 'aliases'.* is damaged"):
        read_safetensors(tmp_path / 'a.safetensors')


def header_of(**tensors):
    """A file of 64 bytes of values that claims to hold these."""
    header = json.dumps(
        {
            key: dict(dtype='F32', shape=[size], data_offsets=offsets)
            for key, (size, offsets) in tensors.items()
        }
    ).encode()
    return len(header).to_bytes(8, 'little') + header + bytes(64)


@pytest.mark.parametrize(
    'content',
    [
        (1 << 40).to_bytes(8, 'little') + b'{}',
        header_of(a=(8, [0, 32]), b=(8, [16, 48])),
        header_of(a=(8, [0, 32]), b=(80, [32, 352])),
        header_of(a=(-8, [0, 32])),
        header_of(a=(1 << 62, [0, 64])),
    ],
    ids=['huge header', 'overlap', 'behind the end', 'negative', 'huge'],
)
def test_impossible_headers_are_refused(tmp_path, content):
    (tmp_path / 'a.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match='a.safetensors: not a readable safetensors file'):
        read_safetensors(tmp_path / 'a.safetensors')


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(b'old')
    with pytest.raises(CheckpointError, match='cannot hold a, which is torch.complex64'):
        save_weights(dict(a=torch.zeros(2, dtype=torch.complex64)), path)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1
